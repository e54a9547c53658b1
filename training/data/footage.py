"""Videos of a folder, to be evaluated: files, or folders of pictures; never more than one clip of one in memory.

A video is a file (.mp4, .mkv, .webm, .mov, .avi) or a folder of numbered pictures (.png, .jpg, .webp), by name.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import torch
from torch import Tensor

from ...evaluation.networks.loading import MetricError, sha256
from . import videos

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
TAGS = ("caption", "description", "comment")


class Damaged(MetricError):
    """A video that cannot be read, or is too short; a run may leave it out."""


@dataclass(frozen=True)
class Video:
    """`name` is what captions and images are found by: the file's or folder's, without a suffix."""

    name: str
    path: Path

    def files(self) -> list[Path]:
        return _pictures(self.path) if self.path.is_dir() else [self.path]


def listed(folder: Path, option: str) -> list[Video]:
    """The videos of a folder by name. MetricError when there is none, or two of one name."""
    if not folder.is_dir():
        raise MetricError(f"{option} {folder} is no folder; give a folder of videos, or of folders of pictures")
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    found = [Video(p.stem, p) for p in entries if p.is_file() and p.suffix.lower() in videos.SUFFIXES]
    found += [Video(p.name, p) for p in entries if p.is_dir() and _pictures(p)]
    if not found:
        own = "; the pictures of each video belong into a folder of their own" if _pictures(folder) else ""
        raise MetricError(
            f"{option} {folder} has no video ({', '.join(videos.SUFFIXES)}, or folders of {', '.join(PICTURES)}){own}"
        )
    names = [video.name for video in found]
    double = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if double:
        raise MetricError(f"{option} {folder} has two videos called {double}; keep one")
    return sorted(found, key=lambda video: video.name)


def opening(video: Video, frames: int, stride: int = 1) -> Tensor:
    """Every stride-th frame from the first on, (frames, 3, h, w) bytes. Damaged when they are not there."""
    wanted, taken, seen = (frames - 1) * stride + 1, [], 0
    try:
        for i, frame in zip(range(wanted), _decoded(video), strict=False):
            if i % stride == 0:
                taken.append(frame)
            seen = i + 1
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise Damaged(f"{video.path} cannot be read ({error}); make it again, or leave it out") from error
    if len(taken) < frames:
        raise Damaged(
            f"{video.path} has {seen} frames; {wanted} are needed for {frames} at a stride of {stride}: give longer "
            "videos, or a smaller --frames"
        )
    if len({frame.shape for frame in taken}) > 1:
        raise Damaged(f"{video.path} has frames of several sizes; make it again, or leave it out")
    return torch.stack(taken)


def picture(path: Path) -> Tensor:
    """(3, h, w) bytes of a picture file. MetricError when it cannot be read."""
    try:
        return next(_decoded(Video(path.stem, path)))
    except (av.error.FFmpegError, OSError, ValueError, StopIteration) as error:
        raise MetricError(f"{path} cannot be read as a picture ({error}); give a PNG, JPEG or WebP file") from error


def add_to_digest(digest: Any, video: Video) -> None:
    """Names and bytes of a video, so that a report says which videos it is of."""
    for file in video.files():
        digest.update(f"{video.name}/{file.name}\n".encode())
        digest.update(bytes.fromhex(sha256(file)))


def captions(found: list[Video], lines: Path | None) -> dict[str, str]:
    """Name -> caption, for all videos that have one: of a .jsonl file, of NAME.txt beside it, or of its own metadata.

    A line of the file: {"video": NAME, "caption": TEXT}. MetricError when it is not such a file.
    """
    told = _lines(lines) if lines else {}
    own = {video.name: told.get(video.name) or _beside(video) or _metadata(video) for video in found}
    return {name: text for name, text in own.items() if text}


def images(found: list[Video], folder: Path) -> dict[str, Path]:
    """Name -> the picture of that name in a folder, for all videos that have one."""
    if not folder.is_dir():
        raise MetricError(f"--images {folder} is no folder; give one with NAME.png for the video NAME")
    there = {path.stem: path for path in _pictures(folder)}
    return {video.name: there[video.name] for video in found if video.name in there}


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def _decoded(video: Video) -> Iterator[Tensor]:
    for file in video.files():
        with av.open(str(file)) as container:
            for frame in container.decode(video=0):
                yield torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


def _lines(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise MetricError(f"--captions {path}: there is no such file; lines are " + '{"video": NAME, "caption": TEXT}')
    told = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            told[_name(entry["video"])] = str(entry["caption"])
        except (ValueError, KeyError, TypeError) as error:
            raise MetricError(
                f"--captions {path}, line {number} is not " + '{"video": NAME, "caption": TEXT}; mend it'
            ) from error
    return told


def _name(told: str) -> str:
    path = Path(told)
    return path.stem if path.suffix.lower() in videos.SUFFIXES else path.name


def _beside(video: Video) -> str:
    path = video.path.with_name(f"{video.name}.txt")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _metadata(video: Video) -> str:
    """A caption tag, or the positive prompt of the ComfyUI graph that a video carries."""
    if video.path.is_dir():
        return ""
    try:
        with av.open(str(video.path)) as container:
            tags = {name.lower(): text for name, text in container.metadata.items()}
    except (av.error.FFmpegError, OSError):
        return ""  # told when its frames are read
    written = next((tags[name].strip() for name in TAGS if tags.get(name, "").strip()), "")
    return prompt_of(tags.get("prompt", "")) or written


def prompt_of(graph: str) -> str:
    """The one text that `positive` inputs of a ComfyUI graph (API form) lead to; "" when there is none or several."""
    try:
        nodes = json.loads(graph)
    except ValueError:
        return ""
    if not isinstance(nodes, dict) or not all(isinstance(node, dict) for node in nodes.values()):
        return ""
    found = {
        _text(nodes, node["inputs"]["positive"]) for node in nodes.values() if "positive" in node.get("inputs", {})
    }
    found.discard("")
    return found.pop() if len(found) == 1 else ""


def _text(nodes: Mapping[str, Any], link: Any, depth: int = 0) -> str:
    """Follow a conditioning to the node whose `text` it is."""
    if not isinstance(link, list) or not link or link[0] not in nodes or depth > len(nodes):
        return ""
    inputs = nodes[link[0]].get("inputs", {})
    if isinstance(inputs.get("text"), str):
        return inputs["text"].strip()
    before = next((inputs[name] for name in ("positive", "conditioning") if name in inputs), None)
    return _text(nodes, before, depth + 1)
