"""One call of the MODEL with its motion models, and what one sampling run remembers.

Shapes: the U-Net's batch is (chunks * clips * f, c, h, w): ComfyUI concatenates the conditions, and each has all clips.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...core.slots import Slot
from ...harivo.model import HarivoModel
from ..base.betas import Betas
from ..base.unet import places
from .clips import clip_length
from .files import temporal
from .harivo import PromptTokens, mapped, tokens_of_frames, with_tokens

RUN = "stillmotion.motion.run"


@dataclass(frozen=True)
class Use:
    """How one motion model is used by one MODEL."""

    frames: int
    strength: float
    start_percent: float
    end_percent: float
    mapping: float
    tokens: float
    betas: Betas | None = None
    """Of the training, or as selected; None: those of the base model."""
    to_the_end: bool = True
    """Whether the noise level at end_percent belongs to it."""

    def active(self, sampling: Any, sigma: Tensor) -> bool:
        """Whether this noise level is between start and end, as ComfyUI defines them for conditions."""
        if self.start_percent <= 0 and self.end_percent >= 1:
            return True
        level, last = float(sigma[0]), sampling.percent_to_sigma(self.end_percent)
        return last <= level <= sampling.percent_to_sigma(self.start_percent) and (self.to_the_end or level != last)


@dataclass
class Run:
    """One sampling run: the slots that have a motion module, and those that the U-Net has visited."""

    expected: set[Slot]
    batch: int
    """Images of the whole run. A call of the MODEL may have fewer: context windows."""
    visited: set[Slot] = field(default_factory=set)
    tokens: PromptTokens = field(default_factory=PromptTokens)


@dataclass(frozen=True)
class Active:
    """One motion model in one call of the MODEL."""

    model: nn.Module
    modules: dict[Slot, Any]
    """Temporal modules, each with update(x, frames)."""
    use: Use
    on: bool
    """Whether it is active at this noise level."""
    frames: int
    """Of a clip in this call: less than `use.frames` in a context window."""


@dataclass
class Call:
    """One call of the MODEL."""

    motions: list[Active]
    run: Run | None
    slots: dict[int, list[Slot]] = field(default_factory=dict)
    """id of a layer of the U-Net -> the slots after it and inside it."""
    inside: Slot | None = None
    """The slot inside the currently running spatial transformer."""
    visited: list[Slot] = field(default_factory=list)
    """The slots whose modules were called. The run gets them after the call, because torch.compile, which traces the
    U-Net, loses changes of what lives longer."""
    residual: Tensor | None = None
    """Input to which this transformer's cross-attention will be added: (chunks * clips * f, p, c)."""

    def find(self, unet: nn.Module) -> None:
        """Store the layers of this U-Net instance."""
        self.slots = {}
        for slot, layer in places(unet).items():  # type: ignore[arg-type]
            self.slots.setdefault(id(layer), []).append(slot)

    def needs(self, place: str) -> bool:
        """Whether any motion model has modules at such a place."""
        return any(slot.place == place for motion in self.motions for slot in motion.modules)

    def change(self, slot: Slot, x: Tensor, options: dict[str, Any], residual: Tensor | None = None) -> Tensor:
        """x plus the residuals of the motion models at a slot. The features they get are x, or x + residual."""
        for motion in self.motions:
            module = motion.modules.get(slot)
            if module is None:
                continue
            self.visited.append(slot)
            if motion.on and motion.use.strength:
                features = x if residual is None else x + residual
                update = module.update(features, motion.frames, options)
                x = torch.add(x, update, alpha=motion.use.strength)
        return x

    def norm_frames(self) -> int:
        """Frames over which the image U-Net's GroupNorms take their statistics in this call; 1: of single frames."""
        active = [motion for motion in self.motions if motion.on and motion.use.strength]
        configs = [(temporal(motion.model).config, motion.frames) for motion in active]
        return max((frames for config, frames in configs if getattr(config, "image_norm", "") == "per_clip"), default=1)

    def enter(self, x: Tensor, context: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The U-Net's inputs, scaled latent and text, after mapping networks and with frame-wise tokens."""
        run = PromptTokens() if self.run is None else self.run.tokens
        tokens = []
        for motion in self.motions:
            model, use = motion.model, motion.use
            if not motion.on or not isinstance(model, HarivoModel):
                continue
            x = mapped(model, x, motion.frames, use.mapping, options)
            if model.tokens is not None and use.tokens:
                tokens.append(tokens_of_frames(model, context, motion.frames, use.tokens, run))
        return x, with_tokens(context, tokens)


def frames_of_call(frames: int, rows: int, options: dict[str, Any], longest: int | None = None) -> int:
    """Frames of a clip in one call of the MODEL with so many images of each condition; see `clip_length`."""
    run: Run | None = options.get(RUN)
    return clip_length(frames, rows, None if run is None else run.batch, "context_window" in options, longest)
