"""Noise augmentation: references and anchor are noised like the frame itself, to a level that the networks are told.

In training they resemble what a model makes, errors and all; so errors do not add up along a video (ART-V, arXiv
2311.18834, section 3.3). The level is drawn evenly from 0 to 550 in training and fixed at 200 afterwards.

How the networks are told is RECONSTRUCTED. The paper adds an embedding to that of the time step; the parameter count
leaves no room for a second MLP, so both share one. At level 0 nothing is added, which keeps the image model.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.spatial import timestep_features

MAX_LEVEL = 550  # of the training
LEVEL = 200  # afterwards
TimeEmbed = Callable[[Tensor], Tensor]


def augmented(y: Tensor, noise: Tensor, level: Tensor, alpha_bars: Tensor) -> Tensor:
    """Eq. 3: sqrt(abar) y + sqrt(1 - abar) noise at the level of each item.

    y, noise: (n, ...). level: (n,), whole numbers from 0 to len(alpha_bars) - 1; ValueError for others.
    """
    if len(level) and not 0 <= int(level.min()) <= int(level.max()) < len(alpha_bars):
        raise ValueError(
            f"noise augmentation: levels from {int(level.min())} to {int(level.max())} were given; they go from 0 to "
            f"{len(alpha_bars) - 1}, {LEVEL} is the paper's"
        )
    abar = alpha_bars.to(y.device)[level.long()].to(y.dtype).view(-1, *[1] * (y.ndim - 1))
    return abar.sqrt() * y + (1 - abar).sqrt() * noise


def level_shift(time_embed: TimeEmbed, channels: int, t: Tensor, level: Tensor, form: str = "added") -> Tensor | None:
    """What the level adds to the embedding time_embed(PE(t)); exactly 0 where the level is 0 (RECONSTRUCTED).

    added     time_embed(PE(level)) - time_embed(PE(0))
    inside    time_embed(PE(t) + PE(level) - PE(0)) - time_embed(PE(t))
    none      nothing: None

    time_embed: the network's own MLP, (n, channels) -> (n, d). t, level: (n,).
    """
    if form == "none":
        return None
    change = timestep_features(level, channels) - timestep_features(torch.zeros_like(level), channels)
    start = timestep_features(torch.zeros_like(level) if form == "added" else t, channels)
    shift = time_embed(start + change) - time_embed(start)
    return torch.where((level == 0)[:, None], torch.zeros_like(shift), shift)
