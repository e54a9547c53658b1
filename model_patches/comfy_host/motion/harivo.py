"""HARIVO's mapping network and frame-wise tokens on what ComfyUI hands to the U-Net.

Both work at the U-Net's door, where ComfyUI has scaled the latent to the VP coordinates of training
(x / sqrt(1 + sigma^2)), for every condition of the batch. What a ControlNet sees is made before, from the unmapped
latent and the text alone, as it was trained.

Shapes: the U-Net's batch is (chunks * clips * f, c, h, w), its context (chunks * clips * f, L, d).
"""

from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor

from ...harivo.config import HarivoConfig
from ...harivo.model import HarivoModel
from ...harivo.tokens import FrameTokens, append, softened
from ..base.unet import family


@dataclass
class Made:
    """Tokens that were made in a run, and what for."""

    generator: FrameTokens
    prompt: Tensor
    frames: int
    tokens: Tensor


@dataclass
class PromptTokens:
    """The frame-wise tokens of one run: made once for each prompt, not at each step.

    A prompt is told by its content. ComfyUI's own marks of a condition do not do: it copies them to conditions of other
    words when it fills up areas.
    """

    made: list[Made] = field(default_factory=list)

    def of(self, generator: FrameTokens, rows: Tensor, frames: int, strength: float) -> Tensor:
        """rows: the context of one clip's frames (f, L, d), equal rows where it has one prompt -> (1, f, n, d)."""
        prompt = rows[:1] if bool((rows == rows[:1]).all()) else rows
        for made in self.made:
            if made.generator is generator and made.frames == frames and _same(made.prompt, prompt):
                return made.tokens
        tokens = softened(generator(prompt, frames), generator.text(prompt), strength)
        if len(prompt) > 1:  # a prompt per frame: each gives the tokens of its own frame
            each = torch.arange(frames, device=tokens.device)
            tokens = tokens[each, each].unsqueeze(0)
        self.made.append(Made(generator, prompt.clone(), frames, tokens))
        return tokens


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)


def mapped(model: HarivoModel, x: Tensor, frames: int, strength: float) -> Tensor:
    """x after the mapping network. Channels behind the latent's (an inpainting model's mask) stay as they are."""
    if model.mapping is None or strength == 0:
        return x
    latent = x[:, : model.mapping.config.channels]
    moved = torch.add(latent, model.mapping.update(latent, frames), alpha=strength)
    return torch.cat([moved, x[:, latent.shape[1] :]], dim=1)


def tokens_of_frames(model: HarivoModel, context: Tensor, frames: int, strength: float, run: PromptTokens) -> Tensor:
    """The tokens of each frame of the batch: context (clips f, L, d) -> (clips, f, n, d)."""
    assert model.tokens is not None
    return torch.cat([run.of(model.tokens, rows, frames, strength) for rows in context.split(frames)])


def with_tokens(context: Tensor, each: list[Tensor]) -> Tensor:
    """The context with the tokens of each HARIVO model behind it; all were made from the text alone."""
    for tokens in each:
        context = append(context, tokens)
    return context


def check_parts(model: comfy.model_patcher.ModelPatcher, config: HarivoConfig) -> None:
    """Mapping network and tokens were built for this latent and this text. ValueError names both sizes."""
    latent: Any = model.get_model_object("latent_format")
    if config.mapping is not None and config.mapping.channels != latent.latent_channels:
        raise ValueError(
            f"mapping network: it was built for latents of {config.mapping.channels} channels, this MODEL is "
            f"{family(model)} with {latent.latent_channels}; load the kind of checkpoint that it was trained on"
        )
    width = model.model.model_config.unet_config.get("context_dim")
    if config.tokens is not None and config.tokens.context_dim != width:
        raise ValueError(
            f"frame-wise tokens: they were trained on text tokens of width {config.tokens.context_dim}, this MODEL is "
            f"{family(model)} with {width}; load the kind of checkpoint that they were trained on"
        )
