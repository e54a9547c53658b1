"""Clips of video files, from a folder of videos that each have their caption in a text file of the same name."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import av
import av.error
import torch
import torch.nn.functional as F
from torch import Tensor

from . import latents
from . import selection as selections

log = logging.getLogger(__name__)
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")


def encode_folder(
    vae,
    videos: Path,
    out: Path,
    *,
    frames: int,
    fps: float,
    size: int,
    scale: float,
    shard: int = 250,
    selection: Path | None = None,
) -> int:
    """Write the latents of all clips of a folder, in shards; returns the number of clips.

    A video is cut into as many consecutive clips as fit into it; a broken video is skipped. selection: a list of
    `select`; only its clips are encoded. Raises ValueError when a caption is missing, and ConfigError when the list was
    made for other clips.
    """
    files, captions = files_and_captions(videos)
    subset = None
    if selection:
        clip_list = selections.load(selection)
        selections.check_source(clip_list, source(videos, frames=frames, fps=fps), selection)
        subset = clip_list.kept
    writer = latents.ShardWriter(out, vae, {"seed": "0", "times": latents.times_of(frames, fps)}, shard)
    number = 0
    for file, caption in zip(files, captions, strict=True):
        for clip in clips(file, frames=frames, fps=fps, size=size):
            if subset is None or number in subset:
                writer.add(latents.encode_frames(vae, clip, scale), caption, clip[0])
            number += 1
    log.info("wrote %d clips of %d videos", writer.close(), len(files))
    return writer.done


def files_and_captions(folder: Path) -> tuple[list[Path], list[str]]:
    """The videos of a folder, in the order of their clips, and their captions. Raises ValueError if one is missing."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    return files, latents.captions_of(files, folder, "video")


def source(folder: Path, *, frames: int, fps: float) -> dict[str, Any]:
    """Identifies the clips that a list of `select` refers to: the files, and how they are cut into clips."""
    files, _ = files_and_captions(folder)
    content = "".join(f"{file.name}/{file.stat().st_size}\n" for file in files)
    return {"videos": hashlib.sha256(content.encode()).hexdigest()[:16], "frames": frames, "fps": fps}


def clips(file: Path, *, frames: int, fps: float, size: int) -> list[Tensor]:
    """Clips in -1..1, (frames, 3, size, size) each: the centre square, resampled to `fps` by the frames' timestamps."""
    pictures: list[Tensor] = []
    try:
        with av.open(str(file)) as container:
            for picture in container.decode(video=0):
                if picture.time is not None and picture.time >= len(pictures) / fps - 1e-6:
                    pictures.append(square(torch.from_numpy(picture.to_ndarray(format="rgb24")), size))
    except (av.error.FFmpegError, ValueError, IndexError, OSError, MemoryError) as error:
        log.warning("%s cannot be read (%s) and is skipped", file.name, error)
        return []
    count = len(pictures) // frames
    if not count:
        log.warning("%s is skipped: it has %d frames at %g fps, a clip needs %d", file.name, len(pictures), fps, frames)
    return [torch.stack(pictures[i * frames : (i + 1) * frames]) for i in range(count)]


def square(picture: Tensor, size: int) -> Tensor:
    """(h, w, 3) bytes -> (3, size, size) in -1..1: the centre square, scaled to `size`."""
    h, w, _ = picture.shape
    short = min(h, w)
    top, left = (h - short) // 2, (w - short) // 2
    crop = picture[top : top + short, left : left + short].permute(2, 0, 1).unsqueeze(0).float()
    return F.interpolate(crop, size=(size, size), mode="bicubic", antialias=True)[0].clamp(0, 255) / 127.5 - 1
