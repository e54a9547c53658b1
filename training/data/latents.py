"""Latents of the pocket's clips, encoded once: file `latents.safetensors` with (n, t, 4, h, w) in half precision.

Clip `i` of the cache is `sprites.clip(seed, i)` at the t frame times of a whole clip, so captions and truth need no
file. The hash of the autoencoder is in the header: latents of another autoencoder are refused, not used.
"""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from . import sprites

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Latents:
    """Scaled latents (what the U-Net sees) and how to name their clips."""

    values: Tensor  # (n, t, 4, h, w), float16, standard deviation about 1
    times: list[float]
    seed: int

    def clip(self, i: int) -> sprites.Clip:
        return sprites.clip(self.seed, i)


def weights_hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def encode(vae, path: Path, *, first: int, count: int, times: list[float], seed: int, scale: float) -> None:
    """Write the latents of clips first..first+count-1; `path` appears only when it is whole."""
    device = next(vae.parameters()).device
    values = []
    for i in range(first, first + count):
        frames = sprites.render(sprites.clip(seed, i), times) * 2 - 1
        values.append((vae.encode(frames.to(device)).latent_dist.mean * scale).half().cpu())
        if (i - first + 1) % 200 == 0:
            log.info("encoded %d of %d clips", i - first + 1, count)
    header = {"vae": weights_hash(vae), "seed": str(seed), "first": str(first), "times": ",".join(map(str, times))}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"latents": torch.stack(values).contiguous()}, partial, header)
    os.replace(partial, path)


def read(folder: Path, vae: nn.Module) -> Latents:
    """All shards of a folder, in order."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"no latents in {folder}; make them with: python -m stillmotion.training pocket latents"
        )
    values, header = [], {}
    for file in files:
        with safe_open(file, "pt") as f:
            header = f.metadata()
            if header["vae"] != weights_hash(vae):
                raise ValueError(f"{file} was encoded by another autoencoder; delete {folder} and encode again")
            values.append((int(header["first"]), f.get_tensor("latents")))
    values.sort(key=lambda pair: pair[0])
    starts = [first for first, _ in values]
    if starts != [sum(len(v) for _, v in values[:j]) for j in range(len(values))]:
        raise ValueError(f"the shards in {folder} have gaps: they begin at clips {starts}; encode again")
    times = [float(t) for t in header["times"].split(",")]
    return Latents(torch.cat([v for _, v in values]), times, int(header["seed"]))
