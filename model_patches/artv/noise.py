"""Noise augmentation: references and anchor get noise like the frame itself, and the networks get its level.

In training they thereby resemble generated frames with their errors, so that errors do not accumulate along a video
(ART-V, arXiv 2311.18834, section 3.3). The level is drawn uniformly from 0 to 550 in training and fixed at 200 in
sampling.

How the networks get the level is RECONSTRUCTED. The paper adds an embedding to that of the time step; the parameter
count leaves no room for a second MLP, so both share one. At level 0 nothing is added, which preserves the image model.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.spatial import timestep_features

MAX_LEVEL = 550  # in training
LEVEL = 200  # in sampling
TimeEmbed = Callable[[Tensor], Tensor]


def augmented(y: Tensor, noise: Tensor, level: Tensor, alpha_bars: Tensor) -> Tensor:
    """Eq. 3: sqrt(abar) y + sqrt(1 - abar) noise, at each item's level.

    y, noise: (n, ...). level: (n,), integers from 0 to len(alpha_bars) - 1; ValueError for any other.
    """
    if len(level) and not 0 <= int(level.min()) <= int(level.max()) < len(alpha_bars):
        raise ValueError(
            f"noise augmentation: the levels go from {int(level.min())} to {int(level.max())}; give levels from 0 to "
            f"{len(alpha_bars) - 1} (the paper samples at {LEVEL})"
        )
    abar = alpha_bars.to(y.device)[level.long()].to(y.dtype).view(-1, *[1] * (y.ndim - 1))
    return abar.sqrt() * y + (1 - abar).sqrt() * noise


def level_shift(time_embed: TimeEmbed, channels: int, t: Tensor, level: Tensor, form: str = "added") -> Tensor | None:
    """What is added to the embedding time_embed(PE(t)) for the level; exactly 0 at level 0 (RECONSTRUCTED).

    added     time_embed(PE(level)) - time_embed(PE(0))
    inside    time_embed(PE(t) + PE(level) - PE(0)) - time_embed(PE(t))
    none      nothing: None

    time_embed: the MLP of the network, (n, channels) -> (n, d). t, level: (n,).
    """
    if form == "none":
        return None
    change = timestep_features(level, channels) - timestep_features(torch.zeros_like(level), channels)
    start = timestep_features(torch.zeros_like(level) if form == "added" else t, channels)
    shift = time_embed(start + change) - time_embed(start)
    return torch.where((level == 0)[:, None], torch.zeros_like(shift), shift)
