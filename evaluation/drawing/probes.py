"""Measurements of a module from outside, by comparing its input and output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shift:
    """The effect of a mapping M on the noisy latents of one timestep. Mean and deviation are over all numbers."""

    timestep: float
    mean: float
    deviation: float
    mapped_mean: float
    mapped_deviation: float
    change: float  # |M(x_t) - x_t| / |x_t|


@torch.no_grad()
def mapping_shift(
    mapping: Callable[[Tensor, int], Tensor],  # (clips * frames, c, h, w), frames -> same shape
    latents: Tensor,  # (clips * frames, c, h, w): clean, scaled as for the U-Net
    frames: int,
    *,
    alpha_bars: Tensor,  # (T,)
    timesteps: Sequence[int],
    seed: int = 0,
) -> list[Shift]:
    """M at x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, with one eps for all t, independent between frames.

    As in HARIVO's figure A1, where the deviation stays and the mean shifts little. ValueError unless the batch is whole
    clips.
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
