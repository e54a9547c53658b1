"""The videos of a folder that are to be evaluated. At most one clip is held in memory at a time.

A video is a file (.mp4, .mkv, .webm, .mov, .avi) or a folder of images (.png, .jpg, .webp), which are sorted by name.
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


class UnreadableVideo(MetricError):
    """A video that cannot be read or is too short; an evaluation may skip it."""


@dataclass(frozen=True)
class Video:
    """`name` links a video to its caption and image: the name of its file (without suffix) or of its folder."""

    name: str
    path: Path

    def files(self) -> list[Path]:
        return _pictures(self.path) if self.path.is_dir() else [self.path]


def list_videos(folder: Path, option: str) -> list[Video]:
    """The videos of a folder, sorted by name. Raises MetricError when there is none, or two have the same name."""
    if not folder.is_dir():
        raise MetricError(f"{option} {folder} is not a folder; give a folder of videos, or of folders of images")
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    video_list = [Video(p.stem, p) for p in entries if p.is_file() and p.suffix.lower() in videos.SUFFIXES]
    video_list += [Video(p.name, p) for p in entries if p.is_dir() and _pictures(p)]
    if not video_list:
        hint = "; put the images of each video into a folder of its own" if _pictures(folder) else ""
        raise MetricError(
            f"{option} {folder} has no video ({', '.join(videos.SUFFIXES)}, or folders of {', '.join(PICTURES)}){hint}"
        )
    names = [video.name for video in video_list]
    duplicate = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if duplicate:
        raise MetricError(f"{option} {folder} has two videos named {duplicate}; remove or rename one")
    return sorted(video_list, key=lambda video: video.name)


def first_frames(video: Video, frames: int, stride: int = 1) -> Tensor:
    """The first `frames` frames at a stride: (frames, 3, h, w) bytes. Raises UnreadableVideo otherwise."""
    length, clip, count = (frames - 1) * stride + 1, [], 0
    try:
        for i, frame in zip(range(length), _decode(video), strict=False):
            if i % stride == 0:
                clip.append(frame)
            count = i + 1
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UnreadableVideo(f"{video.path} cannot be read ({error}); replace or remove it") from error
    if len(clip) < frames:
        raise UnreadableVideo(
            f"{video.path} has {count} frames; {length} are needed for {frames} at a stride of {stride}: give longer "
            "videos, or a smaller --frames"
        )
    if len({frame.shape for frame in clip}) > 1:
        raise UnreadableVideo(f"{video.path} has frames of different sizes; replace or remove it")
    return torch.stack(clip)


def picture(path: Path) -> Tensor:
    """An image file as bytes, (3, h, w). Raises MetricError when it cannot be read."""
    try:
        return next(_decode(Video(path.stem, path)))
    except (av.error.FFmpegError, OSError, ValueError, StopIteration) as error:
        raise MetricError(f"{path} cannot be read as an image ({error}); give a PNG, JPEG or WebP file") from error


def add_to_digest(digest: Any, video: Video) -> None:
    """Add the name and content of a video to a digest, which identifies in a report the videos it was made from."""
    for file in video.files():
        digest.update(f"{video.name}/{file.name}\n".encode())
        digest.update(bytes.fromhex(sha256(file)))


def captions(video_list: list[Video], lines: Path | None) -> dict[str, str]:
    """Name -> caption, for all videos that have one: from a .jsonl file, from NAME.txt beside the video, or from the
    video's own metadata.

    Each line of the .jsonl file is {"video": NAME, "caption": TEXT}. Raises MetricError for any other content.
    """
    listing = _lines(lines) if lines else {}
    texts = {video.name: listing.get(video.name) or _text_file(video) or _metadata(video) for video in video_list}
    return {name: text for name, text in texts.items() if text}


def images(video_list: list[Video], folder: Path) -> dict[str, Path]:
    """Name -> the image file of that name in a folder, for all videos that have one."""
    if not folder.is_dir():
        raise MetricError(f"--images {folder} is not a folder; give a folder with NAME.png for each video NAME")
    paths = {path.stem: path for path in _pictures(folder)}
    return {video.name: paths[video.name] for video in video_list if video.name in paths}


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def _decode(video: Video) -> Iterator[Tensor]:
    for file in video.files():
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            for frame in container.decode(video=0):
                yield torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


def _lines(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise MetricError(
            f"--captions {path}: there is no such file; give a file with one line a video: "
            + '{"video": NAME, "caption": TEXT}'
        )
    texts = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            texts[_name(entry["video"])] = str(entry["caption"])
        except (ValueError, KeyError, TypeError) as error:
            raise MetricError(
                f"--captions {path}, line {number} is not " + '{"video": NAME, "caption": TEXT}; correct this line'
            ) from error
    return texts


def _name(file: str) -> str:
    path = Path(file)
    return path.stem if path.suffix.lower() in videos.SUFFIXES else path.name


def _text_file(video: Video) -> str:
    path = video.path.with_name(f"{video.name}.txt")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _metadata(video: Video) -> str:
    """The positive prompt of the ComfyUI graph that is embedded in a video, or else its caption tag."""
    if video.path.is_dir():
        return ""
    try:
        with av.open(str(video.path)) as container:
            tags = {name.lower(): text for name, text in container.metadata.items()}
    except (av.error.FFmpegError, OSError):
        return ""  # reported later, when the frames are read
    tag = next((tags[name].strip() for name in TAGS if tags.get(name, "").strip()), "")
    return prompt_of(tags.get("prompt", "")) or tag


def prompt_of(graph: str) -> str:
    """The text that the `positive` inputs of a ComfyUI graph (API format) lead to; "" if there is none or several."""
    try:
        nodes = json.loads(graph)
    except ValueError:
        return ""
    if not isinstance(nodes, dict) or not all(isinstance(node, dict) for node in nodes.values()):
        return ""
    prompts = {
        _text(nodes, node["inputs"]["positive"]) for node in nodes.values() if "positive" in node.get("inputs", {})
    }
    prompts.discard("")
    return prompts.pop() if len(prompts) == 1 else ""


def _text(nodes: Mapping[str, Any], link: Any, depth: int = 0) -> str:
    """Follow a conditioning link back to the node that has a `text` input, and return that text."""
    if not isinstance(link, list) or not link or link[0] not in nodes or depth > len(nodes):
        return ""
    inputs = nodes[link[0]].get("inputs", {})
    if isinstance(inputs.get("text"), str):
        return inputs["text"].strip()
    source = next((inputs[name] for name in ("positive", "conditioning") if name in inputs), None)
    return _text(nodes, source, depth + 1)
