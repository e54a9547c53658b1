"""The verb `latents`: clips encoded once by a base's autoencoder."""

import logging
from pathlib import Path
from typing import Any

import torch

from ...model_patches.pocket import SCALE
from ..data import latents, sprites
from ..plans.common import BaseTable
from ..plans.errors import ConfigError
from ..systems.bases import load

log = logging.getLogger(__name__)
SHARD = 250


def encode(
    table: BaseTable,
    tokenizer: Path,
    out: Path,
    *,
    size: int,
    frames: int,
    fps: float,
    clips: int,
    videos: Path | None = None,
    images: Path | None = None,
    paper: bool = False,
    kept: Path | None = None,
) -> None:
    """Shards in `out`: of a folder of videos, of pseudo-videos of a folder of images, or else of drawn clips.

    paper: make the pseudo-videos by FFmpeg's zoompan. kept: a list of `select` of the videos' clips. ConfigError when
    both folders are given, or a list without videos.
    """
    if kept and not videos:
        raise ConfigError("--kept is for --videos; with cached latents give the list to the training (data.kept)")
    if videos and images:
        raise ConfigError("--videos and --images: give one of them, and an output folder for each")
    if any(out.glob("*.safetensors")):
        raise ConfigError(f"{out} holds latents already; choose an empty folder, or delete it")
    vae: Any = load(table, tokenizer).vae
    vae.to("cuda" if torch.cuda.is_available() else "cpu")
    if videos:
        from ..data.videos import encode_folder

        cut = {"frames": frames, "fps": fps, "size": size, "scale": SCALE, "shard": SHARD}
        encode_folder(vae, videos, out, kept=kept, **cut)
        return
    if images:
        from ..data import pseudo

        cut = {"frames": frames, "fps": fps, "size": size, "scale": SCALE, "shard": SHARD}
        pseudo.encode_folder(vae, images, out, clips=clips, render=pseudo.zoompan if paper else pseudo.smooth, **cut)
        return
    times = sprites.frame_times(frames)
    for first in range(0, clips, SHARD):
        path, count = out / f"clips-{first:06d}.safetensors", min(SHARD, clips - first)
        latents.encode(vae, path, first=first, count=count, times=times, seed=0, scale=SCALE, size=size)
        log.info("%s: %d clips", path, count)
