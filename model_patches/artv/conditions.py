"""The conditions of a frame as the networks take them: with noise, as tokens, and zero where they are dropped.

A dropped condition is zeros without noise (RECONSTRUCTED; the paper says that references are dropped, and sets the
anchor to zero in an ablation). The networks get the noise level as long as one of the two conditions is present.
Without references there is nothing to copy, so the mask is 0.

Shapes: n frames; c, h, w of the latents; T tokens of the anchor, each k wide.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .anchor import patch_tokens
from .config import ArtvConfig
from .noise import augmented


@dataclass(frozen=True)
class Conditions:
    """The conditions of n frames."""

    references: Tensor
    """Input of the adapters: (n, 2 c, h, w)."""
    tokens: Tensor
    """Input of the anchor blocks: (n, T, k)."""
    level: Tensor
    """Noise level of both, as the networks get it: (n,)."""
    static: Tensor
    """y_ref of Eq. 6: (n, c, h, w)."""
    blank: Tensor
    """True for frames without references, whose mask is 0: (n,) bool."""


def conditions(
    config: ArtvConfig,
    references: Tensor,
    anchor: Tensor,
    noise: Tensor,
    level: Tensor,
    alpha_bars: Tensor,
    *,
    no_references: Tensor,
    no_anchor: Tensor,
) -> Conditions:
    """Conditions from clean latents in the latent space of the U-Net.

    references: (n, 2, c, h, w), y^{i-1} and y^{i-2}. anchor: (n, c, h, w), or (n, T, k) CLIP tokens, which stay clean.
    noise: (n, 3, c, h, w), unit noise for the references and the anchor. level: (n,), indices into `alpha_bars`.
    no_references, no_anchor: (n,) bool, which frames do without them. ValueError for a level outside the table.
    """
    n = len(references)
    levels = level.repeat_interleave(2)
    noised = augmented(references.flatten(0, 1), noise[:, :2].flatten(0, 1), levels, alpha_bars).unflatten(0, (n, 2))
    noised = _without(noised, no_references)
    return Conditions(
        references=noised.flatten(1, 2),
        tokens=_tokens(config, anchor, noise[:, 2], level, alpha_bars, no_anchor),
        level=torch.where(no_references & no_anchor, torch.zeros_like(level), level),
        static=noised[:, 0] if config.static_reference == "augmented" else _without(references[:, 0], no_references),
        blank=no_references,
    )


def _tokens(
    config: ArtvConfig, anchor: Tensor, noise: Tensor, level: Tensor, alpha_bars: Tensor, dropped: Tensor
) -> Tensor:
    if config.anchor == "clip":
        return _without(anchor, dropped)
    noised = _without(augmented(anchor, noise, level, alpha_bars), dropped)
    return patch_tokens(noised, config.anchor_patch, config.anchor_positions)


def _without(values: Tensor, dropped: Tensor) -> Tensor:
    """Zeros where an item is dropped, even if its values are NaN."""
    return torch.where(dropped.view(-1, *[1] * (values.ndim - 1)), torch.zeros_like(values), values)
