"""A HARIVO model in a diffusers U-Net, through torch hooks: the U-Net's modules, keys and weights are unchanged.

It runs the three parts of the model and can record the inputs of HARIVO's losses: the middle block's features and the
self-attention maps of the up blocks.

Shapes: b clips, f frames, L text tokens, n tokens a frame; the U-Net's batch is (b f, c, h, w), frame after frame.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ..harivo.model import HarivoModel
from ..harivo.tokens import append, softened
from . import motion

Reduce = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class Maps:
    """What is recorded of the up blocks' self-attention in a forward. Each limit saves memory."""

    queries: int | None = 256
    """At most this many query pixels, evenly spread and the same in all frames; None: all. All keys are always used."""
    heads: str = "mean"
    """"mean": the average map of the heads. "all": one map per head."""
    reduce: Reduce | None = None
    """If set, reduce(map, layer, layers) is stored instead of the map, for example its loss; layer counts from 1."""
    stream: Callable[[Tensor, Tensor], Tensor] | None = None
    """If set, stream(Q, K) is stored instead of the map, which is not computed. Q: (b f, heads, queries, d),
    K: (b f, heads, keys, d)."""

    def __post_init__(self) -> None:
        if self.heads not in ("mean", "all"):
            raise ValueError(f"attention maps: heads is {self.heads!r}; choose mean or all")
        if self.queries is not None and self.queries < 1:
            raise ValueError(f"attention maps: queries is {self.queries}; give at least 1, or None for all pixels")


class Handle:
    """An attached HARIVO model. Set `frames` before each forward of the U-Net; `remove()` restores the U-Net.

    temporal, mapping, tokens: strength of each part; at 0 the result is exactly that of the U-Net without it. The
    strength of a missing part is 0. `temporal` and `mapping` are factors on the residual; `tokens` is the strength of
    `harivo.tokens.softened`. With `frames = 1` no part runs.

    The frames of a clip share one prompt: the tokens are computed in each forward from the context of the clip's first
    frame, unless `prompt_tokens` contains the result of `tokens_of` for these prompts.
    """

    def __init__(self, unet: UNet2DConditionModel, model: HarivoModel) -> None:
        self.model = model
        self.mapping = 0.0 if model.mapping is None else 1.0
        self.tokens = 0.0 if model.tokens is None else 1.0
        self.prompt_tokens: Tensor | None = None
        """(b, f, n, d) from `tokens_of`, used in every forward until it is set to None."""
        self.keep_middle = False
        self.middle: Tensor | None = None
        """Output of the middle block in the last forward with `keep_middle`: (b f, c, h, w), with its gradient."""
        self.keep_maps: Maps | None = None
        self.maps: dict[int, Tensor] = {}
        """Layer -> attention map of the last forward with `keep_maps`: (b f, heads or 1, queries, keys), softmax over
        keys. Layers are numbered 1, 2, ... in the order of the forward; in SD 1.5 there are 9."""
        self._unet = unet
        self._motion = motion.Handle(unet, model.temporal)  # its hook runs first and checks the frames
        layers = self_attentions(unet)
        self._hooks = [
            unet.register_forward_pre_hook(self._before, with_kwargs=True),
            *(
                layer.register_forward_pre_hook(self._map_at(number, len(layers)), with_kwargs=True)
                for number, layer in enumerate(layers, 1)
            ),
        ]
        if unet.mid_block is not None:
            self._hooks.append(unet.mid_block.register_forward_hook(self._after_middle))

    @property
    def frames(self) -> int | None:
        return self._motion.frames

    @frames.setter
    def frames(self, frames: int | None) -> None:
        self._motion.frames = frames

    @property
    def temporal(self) -> float:
        return self._motion.strength

    @temporal.setter
    def temporal(self, strength: float) -> None:
        self._motion.strength = strength

    def remove(self) -> None:
        """Remove the hooks, which restores the U-Net."""
        self._motion.remove()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.middle, self.maps = None, {}

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """eps of the whole model: x_t (b, f, c, h, w), t (b,), context (b, L, d) -> same as x_t. Sets `frames`."""
        f = self.frames = x_t.shape[1]
        times, contexts = t.repeat_interleave(f), context.repeat_interleave(f, 0)
        return self._unet(x_t.flatten(0, 1), times, contexts).sample.unflatten(0, (-1, f))

    def tokens_of(self, context: Tensor, frames: int) -> Tensor:
        """The frame-wise tokens of prompts, for `prompt_tokens`. context: (b, L, d) -> (b, f, n, d)."""
        if self.model.tokens is None:
            raise ValueError("HARIVO model: it has no frame-wise tokens; load one that was trained with them")
        return self.model.tokens(context, frames)

    def _before(self, _unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self.middle, self.maps = None, {}
        for name in ("mapping", "tokens"):
            if getattr(self, name) and getattr(self.model, name) is None:
                raise ValueError(
                    f"HARIVO model: {name} is {getattr(self, name)}, but this model has no {name}; set it to 0"
                )
        frames = self.frames
        if frames is None or frames == 1:
            return args, kwargs
        if self.model.mapping is not None and self.mapping:
            args, kwargs = _exchange(args, kwargs, 0, "sample", lambda x: self._mapped(x, frames))
        if self.model.tokens is not None and self.tokens:
            args, kwargs = _exchange(args, kwargs, 2, "encoder_hidden_states", lambda c: self._with_tokens(c, frames))
        return args, kwargs

    def _mapped(self, x: Tensor, frames: int) -> Tensor:
        mapping: Any = self.model.mapping
        return mapping(x, frames) if self.mapping == 1 else torch.add(x, mapping.update(x, frames), alpha=self.mapping)

    def _with_tokens(self, context: Tensor, frames: int) -> Tensor:
        prompts = context.unflatten(0, (-1, frames))[:, 0]  # (b, L, d)
        tokens = self.tokens_of(prompts, frames) if self.prompt_tokens is None else self.prompt_tokens
        if tokens.shape[:2] != (len(prompts), frames):
            raise ValueError(
                f"HARIVO model: prompt_tokens are for {tokens.shape[0]} clips of {tokens.shape[1]} frames, but the "
                f"U-Net got {len(prompts)} of {frames}; compute them again with tokens_of, or set prompt_tokens to None"
            )
        generator: Any = self.model.tokens
        return append(context, softened(tokens, generator.text(prompts), self.tokens))

    def _after_middle(self, _block: nn.Module, _args: tuple, output: Tensor) -> None:
        if self.keep_middle:
            self.middle = output

    def _map_at(self, number: int, layers: int) -> Any:
        def hook(layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            if self.keep_maps is None:
                return
            x = args[0] if args else kwargs["hidden_states"]
            stream, reduce = self.keep_maps.stream, self.keep_maps.reduce
            # by number, because gradient checkpointing runs the hook a second time
            if stream is not None:
                self.maps[number] = stream(*queries_and_keys(layer, x, self.keep_maps))
                return
            weights = attention_map(layer, x, self.keep_maps)
            self.maps[number] = weights if reduce is None else reduce(weights, number, layers)

        return hook


def attach(unet: UNet2DConditionModel, model: HarivoModel) -> Handle:
    """Attach the parts to the U-Net. ValueError when the sizes of the two differ."""
    check_base(unet, model)
    return Handle(unet, model)


def check_base(unet: UNet2DConditionModel, model: HarivoModel) -> None:
    """ValueError unless the model was built for a U-Net of these sizes and this text encoder."""
    motion.check_base(unet, model.temporal)
    config, base = model.config, unet.config
    sizes: Any = base
    if config.mapping is not None and config.mapping.channels != sizes.in_channels:
        raise ValueError(
            f"mapping network: it was built for latents with {config.mapping.channels} channels, but this U-Net takes "
            f"{sizes.in_channels}; load the base model that it was trained on"
        )
    if config.tokens is not None and config.tokens.context_dim != sizes.cross_attention_dim:
        raise ValueError(
            f"frame-wise tokens: they were trained on text tokens of width {config.tokens.context_dim}, but this U-Net "
            f"takes {sizes.cross_attention_dim}; load the base model that they were trained on"
        )


def self_attentions(unet: UNet2DConditionModel) -> list[nn.Module]:
    """The self-attention layers of the up blocks, in the order of a forward: the L decoder layers of the paper."""
    blocks: list[Any] = [module for module in unet.up_blocks.modules() if hasattr(module, "attn1")]
    return [block.attn1 for block in blocks]


def queries_and_keys(layer: Any, x: Tensor, options: Maps) -> tuple[Tensor, Tensor]:
    """Q of the selected pixels, K of all. x: (B, pixels, c) -> (B, heads, queries, d), (B, heads, pixels, d)."""
    pixels = x
    if options.queries is not None and options.queries < x.shape[1]:
        indices = torch.linspace(0, x.shape[1] - 1, options.queries, device=x.device).round().long()
        pixels = x[:, indices]
    q, k = (t.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for t in (layer.to_q(pixels), layer.to_k(x)))
    return q, k


def attention_map(layer: Any, x: Tensor, options: Maps) -> Tensor:
    """softmax(Q K^T / sqrt(d)) of a diffusers Attention. x: its input (B, pixels, c) -> (B, heads or 1, q, pixels)."""
    q, k = queries_and_keys(layer, x, options)
    if options.heads == "all":
        return (q @ k.transpose(-1, -2) * layer.scale).softmax(-1)
    # one head after another, so that without gradients only one map is in memory
    maps = ((q[:, i] @ k[:, i].transpose(-1, -2) * layer.scale).softmax(-1) for i in range(layer.heads))
    total = next(maps)
    for each in maps:
        total = total + each
    return (total / layer.heads).unsqueeze(1)


def _exchange(
    args: tuple, kwargs: dict[str, Any], place: int, name: str, change: Callable[[Tensor], Tensor]
) -> tuple[tuple, dict[str, Any]]:
    """The arguments with one of them changed, whether it is positional or a keyword."""
    if len(args) > place:
        return (*args[:place], change(args[place]), *args[place + 1 :]), kwargs
    return args, kwargs | {name: change(kwargs[name])}
