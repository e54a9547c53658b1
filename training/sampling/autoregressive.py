"""Sampling of a video frame by frame with DDIM and Eq. 8 (ART-V, arXiv 2311.18834, section 3.4).

Used for previews during training and for the ablation. The paper's sampler is DPM++ 2S ancestral with 50 steps. We use
deterministic DDIM instead, so that the rows of an ablation differ only in the setting that is compared.

Shapes: n videos, c, h, w of the latents.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ...model_patches.artv.guidance import MASKS, Weights, guided, needed
from ...model_patches.artv.noise import LEVEL
from ..engine.loop import sample_generator
from ..plans.artv import ArtvSamplesTable
from .ddim import descend

OnMask = Callable[[int, int, Tensor], None]  # frame, timestep, m (n, 1, h, w) of the prediction with all conditions


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sampling settings. level: t_test, the timestep of the noise on references and anchor."""

    steps: int = 12
    weights: Weights = field(default_factory=Weights)
    level: int = LEVEL
    mask: bool = True  # False sets m = 0
    anchor: bool = True  # False: no frame is conditioned on an anchor
    masks: str = MASKS[0]

    @staticmethod
    def of(table: ArtvSamplesTable) -> "Settings":
        """The settings of a config's previews."""
        weights = Weights(reference=table.reference, anchor=table.anchor, text=table.guidance - 1)
        return Settings(steps=table.steps, weights=weights, level=table.level)


class Host(Protocol):
    """`diffusers_host.artv.ArtvUNet`."""

    def __call__(
        self,
        y_t: Tensor,
        t: Tensor,
        context: Tensor,
        references: Tensor,
        anchor: Tensor,
        noise: Tensor,
        level: Tensor,
        *,
        no_references: Tensor,
        no_anchor: Tensor,
        masked: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class FrameModel:
    """The model that samples frames: a host, and abar_t of every timestep."""

    host: Host
    table: Tensor


@dataclass(frozen=True)
class FrameConditions:
    """The conditions of a frame, without noise; None where a condition is absent."""

    references: Tensor | None  # (n, 2, c, h, w)
    anchor: Tensor | None  # (n, c, h, w)
    augmentation: Tensor  # (n, 3, c, h, w)


@torch.no_grad()
def roll(
    model: FrameModel,
    context: Tensor,  # (n, L, d)
    empty: Tensor,  # like context, embedding of the empty prompt
    *,
    shape: tuple[int, ...],  # (n, c, h, w)
    frames: int,
    settings: Settings,
    first: Tensor | None = None,  # (n, c, h, w), frame 0; None: it is sampled without references and anchor
    numbers: list[int] | None = None,  # key of each video's noise; None means 0 for all
    seed: int = 0,
    on_mask: OnMask | None = None,
) -> Tensor:
    """A video (n, frames, c, h, w). Noise is keyed by (seed, video, frame): frame i does not depend on later frames."""
    keys = numbers or [0] * shape[0]
    latents = [] if first is None else [first]
    while len(latents) < frames:
        i = len(latents)
        noise = torch.stack([noise_of(seed, key, i, shape[1:]) for key in keys]).to(context.device)
        conditions = FrameConditions(None, None, noise[:, 1:])
        if latents:
            references = torch.stack([latents[-1], latents[max(-2, -len(latents))]], dim=1)
            conditions = FrameConditions(references, latents[0] if settings.anchor else None, noise[:, 1:])
        latents.append(draw(model, context, empty, noise[:, 0], conditions, settings, _frame(on_mask, i)))
    return torch.stack(latents[:frames], dim=1)


def noise_of(seed: int, number: int, frame: int, shape: tuple[int, ...]) -> Tensor:
    """Noise (4, c, h, w): of the frame, of its two references and of its anchor."""
    return torch.randn(4, *shape, generator=sample_generator(seed * 100_003 + number, frame, 1))


def draw(
    model: FrameModel,
    context: Tensor,
    empty: Tensor,
    noise: Tensor,  # (n, c, h, w)
    conditions: FrameConditions,
    settings: Settings,
    on_mask: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Sample one frame (n, c, h, w)."""

    def predict(y_t: Tensor, t: int) -> Tensor:
        eps, m = guided_eps(model.host, y_t, t, context, empty, conditions, settings)
        if on_mask is not None:
            on_mask(t, m)
        return eps

    return descend(predict, noise, model.table, steps=settings.steps)


def guided_eps(
    host: Host, y_t: Tensor, t: int, context: Tensor, empty: Tensor, conditions: FrameConditions, settings: Settings
) -> tuple[Tensor, Tensor]:
    """eps (n, c, h, w) by Eq. 8, all branches in one batch, and the mask (n, 1, h, w) of the fully conditioned branch.

    A branch is named by the condition that it omits; the first branch omits none.
    """
    n, zeros = len(y_t), torch.zeros_like(conditions.augmentation)
    available = ["text"]
    available += [] if conditions.references is None else ["reference"]
    available += [] if conditions.anchor is None else ["anchor"]
    omissions = needed(settings.weights, available)
    branches = ["", *omissions]
    mask_per_branch = settings.masks == MASKS[1]
    mask_rows = (None if mask_per_branch else n) if settings.mask else 0

    def absent(name: str) -> Tensor:
        flags = [name == branch or name not in available for branch in branches]
        return torch.tensor(flags, device=y_t.device).repeat_interleave(n)

    def repeat(value: Tensor | None, default: Tensor) -> Tensor:
        return torch.cat([default if value is None else value] * len(branches))

    eps, m, moving = host(
        repeat(y_t, y_t),
        torch.full((n * len(branches),), t, device=y_t.device),
        torch.cat([empty if branch == "text" else context for branch in branches]),
        repeat(conditions.references, zeros[:, :2]),
        repeat(conditions.anchor, zeros[:, 2]),
        repeat(conditions.augmentation, zeros),
        torch.full((n * len(branches),), settings.level, device=y_t.device),
        no_references=absent("reference"),
        no_anchor=absent("anchor"),
        masked=mask_rows,
    )
    eps_all, *eps_without = (eps if mask_per_branch else moving).split(n)
    eps_guided = guided(eps_all, dict(zip(omissions, eps_without, strict=True)), settings.weights)
    return eps_guided if mask_per_branch else eps[:n] + (1 - m[:n]) * (eps_guided - eps_all), m[:n]


def _frame(on_mask: OnMask | None, frame: int) -> Callable[[int, Tensor], None] | None:
    return None if on_mask is None else lambda t, m: on_mask(frame, t, m)
