"""Clips of video files: a folder of videos, each with its caption in a text file of the same name."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import av
import av.error
import torch
import torch.nn.functional as F
from torch import Tensor

from . import latents, selection

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
    kept: Path | None = None,
) -> int:
    """Latents of all clips of a folder, in shards; returns how many. A broken video is told and left out.

    A video gives as many clips, one after another, as fit into it. kept: a list of `select`, whose clips alone are
    encoded. ValueError when a caption is missing, ConfigError for a list of other clips.
    """
    files, told = listed(videos)
    wanted = None
    if kept:
        chosen = selection.load(kept)
        selection.check_source(chosen, source(videos, frames=frames, fps=fps), kept)
        wanted = chosen.kept
    writer = latents.ShardWriter(out, vae, {"seed": "0", "times": latents.times_of(frames, fps)}, shard)
    number = 0
    for file, caption in zip(files, told, strict=True):
        for clip in clips(file, frames=frames, fps=fps, size=size):
            if wanted is None or number in wanted:
                writer.add(latents.encoded(vae, clip, scale), caption, clip[0])
            number += 1
    log.info("%d clips of %d videos", writer.close(), len(files))
    return writer.done


def listed(folder: Path) -> tuple[list[Path], list[str]]:
    """The videos of a folder, in the order of their clips, and their captions. ValueError when one has none."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    return files, latents.captions_of(files, folder, "video")


def source(folder: Path, *, frames: int, fps: float) -> dict[str, Any]:
    """What tells whether a list of `select` means these clips: the files, and how they are cut."""
    files, _ = listed(folder)
    told = "".join(f"{file.name}/{file.stat().st_size}\n" for file in files)
    return {"videos": hashlib.sha256(told.encode()).hexdigest()[:16], "frames": frames, "fps": fps}


def clips(file: Path, *, frames: int, fps: float, size: int) -> list[Tensor]:
    """Clips in -1..1, (frames, 3, size, size) each: the middle square, at the given rate by the frames' own times."""
    taken: list[Tensor] = []
    try:
        with av.open(str(file)) as container:
            for picture in container.decode(video=0):
                if picture.time is not None and picture.time >= len(taken) / fps - 1e-6:
                    taken.append(square(torch.from_numpy(picture.to_ndarray(format="rgb24")), size))
    except av.error.FFmpegError as error:
        log.warning("%s cannot be read (%s); it is left out", file.name, error)
        return []
    whole = len(taken) // frames
    if not whole:
        log.warning("%s is left out: %d frames at %g a second, a clip needs %d", file.name, len(taken), fps, frames)
    return [torch.stack(taken[i * frames : (i + 1) * frames]) for i in range(whole)]


def square(picture: Tensor, size: int) -> Tensor:
    """(h, w, 3) bytes -> (3, size, size) in -1..1: the short side scaled to size, the middle cut out."""
    h, w, _ = picture.shape
    short = min(h, w)
    top, left = (h - short) // 2, (w - short) // 2
    cut = picture[top : top + short, left : left + short].permute(2, 0, 1).unsqueeze(0).float()
    return F.interpolate(cut, size=(size, size), mode="bicubic", antialias=True)[0].clamp(0, 255) / 127.5 - 1
