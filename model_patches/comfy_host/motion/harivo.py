"""HARIVO's mapping network and frame-wise tokens on the inputs of ComfyUI's U-Net.

Both are applied directly before the U-Net, where ComfyUI has scaled the latent to the VP coordinates of training
(x / sqrt(1 + sigma^2)), for every condition of the batch. ControlNets run earlier, on the unmapped latent and the text
alone, as they were trained.

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
class CachedTokens:
    """Tokens of one run, with the inputs from which they were computed."""

    generator: FrameTokens
    prompt: Tensor
    frames: int
    tokens: Tensor


@dataclass
class PromptTokens:
    """The frame-wise tokens of one run, computed once for each prompt, not at each step.

    A prompt is identified by its content. ComfyUI's ids of conditions cannot be used, because ComfyUI copies them to
    conditions with other text when it fills areas.
    """

    entries: list[CachedTokens] = field(default_factory=list)

    def of(self, generator: FrameTokens, rows: Tensor, frames: int, strength: float) -> Tensor:
        """rows: context of the frames of one clip (f, L, d), equal rows if it has one prompt -> (1, f, n, d)."""
        prompt = rows[:1] if bool((rows == rows[:1]).all()) else rows
        for entry in self.entries:
            if entry.generator is generator and entry.frames == frames and _same(entry.prompt, prompt):
                return entry.tokens
        tokens = softened(generator(prompt, frames), generator.text(prompt), strength)
        if len(prompt) > 1:  # with one prompt per frame, each prompt provides the tokens of its frame
            indices = torch.arange(frames, device=tokens.device)
            tokens = tokens[indices, indices].unsqueeze(0)
        self.entries.append(CachedTokens(generator, prompt.clone(), frames, tokens))
        return tokens


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)


def mapped(model: HarivoModel, x: Tensor, frames: int, strength: float, options: Any = None) -> Tensor:
    """x after the mapping network. Channels after those of the latent (an inpainting mask) are unchanged.

    options: transformer_options, for ComfyUI's attention.
    """
    if model.mapping is None or strength == 0:
        return x
    latent = x[:, : model.mapping.config.channels]
    latent_update = torch.add(latent, model.mapping.update(latent, frames, options), alpha=strength)
    return torch.cat([latent_update, x[:, latent.shape[1] :]], dim=1)


def _tokens_of_frames(model: HarivoModel, context: Tensor, frames: int, strength: float, run: PromptTokens) -> Tensor:
    """The tokens of each frame of the batch: context (clips f, L, d) -> (clips, f, n, d)."""
    assert model.tokens is not None
    return torch.cat([run.of(model.tokens, rows, frames, strength) for rows in context.split(frames)])


# torch.compile leaves this out: contents are compared, and the tokens of a run are remembered
tokens_of_frames: Any = torch.compiler.disable(_tokens_of_frames)


def with_tokens(context: Tensor, token_sets: list[Tensor]) -> Tensor:
    """The context with the tokens of each HARIVO model appended; all are computed from the text alone."""
    for tokens in token_sets:
        context = append(context, tokens)
    return context


def check_parts(model: comfy.model_patcher.ModelPatcher, config: HarivoConfig) -> None:
    """ValueError, naming both sizes, unless mapping network and tokens fit the MODEL's latents and text."""
    latent: Any = model.get_model_object("latent_format")
    if config.mapping is not None and config.mapping.channels != latent.latent_channels:
        raise ValueError(
            f"mapping network: it was built for latents with {config.mapping.channels} channels, but this MODEL is "
            f"{family(model)} with {latent.latent_channels}; load the kind of checkpoint that it was trained on"
        )
    width = model.model.model_config.unet_config.get("context_dim")
    if config.tokens is not None and config.tokens.context_dim != width:
        raise ValueError(
            f"frame-wise tokens: they were trained on text tokens of width {config.tokens.context_dim}, but this MODEL "
            f"is {family(model)} with {width}; load the kind of checkpoint that they were trained on"
        )
