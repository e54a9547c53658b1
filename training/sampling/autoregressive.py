"""A video frame by frame through a trainer's own forward: DDIM and Eq. 8 (ART-V, arXiv 2311.18834, section 3.4).

Pictures while training and the ablation are drawn by it. The paper's sampler is DPM++ 2S ancestral with 50 steps; DDIM
without noise of its own is ours, so that rows of an ablation differ by what is asked and nothing else.

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

SeeMask = Callable[[int, int, Tensor], None]  # frame, time step, m (n, 1, h, w) of the prediction with all conditions


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a video is drawn. level: t_test, of the noise on references and anchor."""

    steps: int = 12
    weights: Weights = field(default_factory=Weights)
    level: int = LEVEL
    mask: bool = True  # False: m = 0
    anchor: bool = True  # False: no frame has one
    masks: str = MASKS[0]

    @staticmethod
    def of(table: ArtvSamplesTable) -> "Settings":
        """Those of a config's pictures."""
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
class Roller:
    """What draws: a host, and abar_t of every time step."""

    host: Host
    table: Tensor


@dataclass(frozen=True)
class Given:
    """What a frame is made from, clean; None: there is none."""

    references: Tensor | None  # (n, 2, c, h, w)
    anchor: Tensor | None  # (n, c, h, w)
    augmentation: Tensor  # (n, 3, c, h, w)


@torch.no_grad()
def roll(
    model: Roller,
    context: Tensor,  # (n, L, d)
    empty: Tensor,  # like context, of the empty prompt
    *,
    shape: tuple[int, ...],  # (n, c, h, w)
    frames: int,
    settings: Settings,
    first: Tensor | None = None,  # (n, c, h, w), frame 0; None: the model draws it without references and anchor
    numbers: list[int] | None = None,  # what the noise of each video is keyed by; None: 0 of all
    seed: int = 0,
    see: SeeMask | None = None,
) -> Tensor:
    """A video (n, frames, c, h, w). Noise is keyed by (seed, video, frame): frame i is the same whatever follows."""
    keys = numbers or [0] * shape[0]
    made = [] if first is None else [first]
    while len(made) < frames:
        i = len(made)
        noise = torch.stack([noise_of(seed, key, i, shape[1:]) for key in keys]).to(context.device)
        given = Given(None, None, noise[:, 1:])
        if made:
            references = torch.stack([made[-1], made[max(-2, -len(made))]], dim=1)
            given = Given(references, made[0] if settings.anchor else None, noise[:, 1:])
        made.append(draw(model, context, empty, noise[:, 0], given, settings, _frame(see, i)))
    return torch.stack(made[:frames], dim=1)


def noise_of(seed: int, number: int, frame: int, shape: tuple[int, ...]) -> Tensor:
    """(4, c, h, w): the frame's, and that of its references and anchor."""
    return torch.randn(4, *shape, generator=sample_generator(seed * 100_003 + number, frame, 1))


def draw(
    model: Roller,
    context: Tensor,
    empty: Tensor,
    noise: Tensor,  # (n, c, h, w)
    given: Given,
    settings: Settings,
    see: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """One frame (n, c, h, w)."""

    def eps(y_t: Tensor, t: int) -> Tensor:
        found, m = guided_eps(model.host, y_t, t, context, empty, given, settings)
        if see is not None:
            see(t, m)
        return found

    return descend(eps, noise, model.table, steps=settings.steps)


def guided_eps(
    host: Host, y_t: Tensor, t: int, context: Tensor, empty: Tensor, given: Given, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Eq. 8, all branches in one batch: eps (n, c, h, w), and the mask (n, 1, h, w) of the one with all conditions."""
    n, nothing = len(y_t), torch.zeros_like(given.augmentation)
    there = ["text"]
    there += [] if given.references is None else ["reference"]
    there += [] if given.anchor is None else ["anchor"]
    left_out = needed(settings.weights, there)
    branches = ["", *left_out]
    one_for_each = settings.masks == MASKS[1]
    masked = (None if one_for_each else n) if settings.mask else 0

    def without(name: str) -> Tensor:
        gone = [name == branch or name not in there for branch in branches]
        return torch.tensor(gone, device=y_t.device).repeat_interleave(n)

    def each(value: Tensor | None, blank: Tensor) -> Tensor:
        return torch.cat([blank if value is None else value] * len(branches))

    eps, m, moving = host(
        each(y_t, y_t),
        torch.full((n * len(branches),), t, device=y_t.device),
        torch.cat([empty if branch == "text" else context for branch in branches]),
        each(given.references, nothing[:, :2]),
        each(given.anchor, nothing[:, 2]),
        each(given.augmentation, nothing),
        torch.full((n * len(branches),), settings.level, device=y_t.device),
        no_references=without("reference"),
        no_anchor=without("anchor"),
        masked=masked,
    )
    full, *others = (eps if one_for_each else moving).split(n)
    found = guided(full, dict(zip(left_out, others, strict=True)), settings.weights)
    return found if one_for_each else eps[:n] + (1 - m[:n]) * (found - full), m[:n]


def _frame(see: SeeMask | None, frame: int) -> Callable[[int, Tensor], None] | None:
    return None if see is None else lambda t, m: see(frame, t, m)
