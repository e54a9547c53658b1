"""The verb `latents`: encodes clips with the autoencoder of a base."""

import logging
from pathlib import Path
from typing import Any

import torch

from ...model_patches.pocket import SCALE
from ..data import latents, shard_files, sprites
from ..plans.common import BaseTable
from ..plans.errors import ConfigError
from ..systems.bases import load

log = logging.getLogger(__name__)
SHARD = 250
LATENT = 4  # pixels: every autoencoder here divides the sides by this, or a multiple


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
    selection: Path | None = None,
) -> None:
    """Write shards into `out`: of a folder of videos, of pseudo-videos of a folder of images, or of drawn clips.

    paper: make the pseudo-videos with FFmpeg's zoompan. selection: a list of `select`; only its clips of the videos are
    encoded. Raises ConfigError when both folders are given, or a list without videos.
    """
    if selection and not videos:
        raise ConfigError("--selection needs --videos; for cached latents set data.selection in the training")
    if videos and images:
        raise ConfigError("--videos and --images cannot be combined; encode them into separate folders")
    if any(out.glob("*.safetensors")):
        raise ConfigError(f"--out {out} contains latents already; choose an empty folder, or delete it")
    if size % LATENT:
        raise ConfigError(
            f"--size {size} is no multiple of {LATENT}, the size of a latent; use {-(-size // LATENT) * LATENT}"
        )
    vae: Any = load(table, tokenizer).vae
    vae.to("cuda" if torch.cuda.is_available() else "cpu")
    if videos:
        from ..data.videos import encode_folder

        settings = {"frames": frames, "fps": fps, "size": size, "scale": SCALE, "shard": SHARD}
        if not encode_folder(vae, videos, out, selection=selection, **settings):
            raise ConfigError(
                f"--videos {videos}: no video there gives a clip of {frames} frames at {fps:g} per second; see the "
                "warnings above, and give longer or whole videos"
            )
        return
    if images:
        from ..data import pseudo

        settings = {"frames": frames, "fps": fps, "size": size, "scale": SCALE, "shard": SHARD}
        render = pseudo.zoompan if paper else pseudo.smooth
        pseudo.encode_folder(vae, images, out, clips=clips, render=render, **settings)
        return
    times = sprites.frame_times(frames)
    for first in range(0, clips, SHARD):
        path, count = out / f"clips-{first:06d}.safetensors", min(SHARD, clips - first)
        settings = {"times": times, "seed": 0, "scale": SCALE, "size": size, "more": shard_files.ENDED}
        latents.encode(vae, path, first=first, count=count, **settings)
        log.info("wrote %s: %d clips", path, count)
    shard_files.write_end(out, clips)
