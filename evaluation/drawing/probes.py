"""Measurements of a module from outside: it is called, and its input and output are compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shift:
    """What a mapping M does to the noisy latents of one timestep. Mean and deviation over all numbers of all clips."""

    timestep: float
    mean: float
    deviation: float
    mapped_mean: float
    mapped_deviation: float
    change: float  # |M(x_t) - x_t| / |x_t|


@torch.no_grad()
def mapping_shift(
    mapping: Callable[[Tensor, int], Tensor],  # (clips * frames, c, h, w), frames -> same shape
    latents: Tensor,  # (clips * frames, c, h, w): clean, scaled as the U-Net takes them
    frames: int,
    *,
    alpha_bars: Tensor,  # (T,)
    timesteps: Sequence[int],
    seed: int = 0,
) -> list[Shift]:
    """M at x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, with one eps for all t, independent between frames.

    HARIVO's figure A1: deviation kept, mean shifted little. ValueError when the batch is not whole clips.
    """
    if frames < 1 or len(latents) % frames:
        raise ValueError(
            f"mapping shift: a batch of {len(latents)} latents cannot be split into clips of {frames} frames; set "
            "frames to the batch size, or to a divisor of it"
        )
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    shifts = []
    for t in timesteps:
        level = alpha_bars[t].to(latents)
        x = level.sqrt() * latents + (1 - level).sqrt() * noise
        y = mapping(x, frames)
        change = ((y - x).norm() / x.norm()).item()
        shifts.append(Shift(float(t), *_moments(x), *_moments(y), change))
    return shifts


def _moments(x: Tensor) -> tuple[float, float]:
    return x.float().mean().item(), x.float().std().item()
