"""Encoders that add to a U-Net, with the structure of a ControlNet (Zhang et al. 2023, arXiv:2302.05543, figure 3).

    h = conv_in(x) + z,    r_1, ..., r_L = zero convolutions of the features of the down and middle blocks on h

where z are features of a hint. Every zero convolution is initialised to zero, so a new encoder adds nothing. Temporal
layers may run after and inside its spatial layers. Weights have the names of diffusers' ControlNetModel.

Shapes: b clips, f frames, n = b f images, c channels, h height, w width of the latents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from .slots import MIDDLE, Slot
from .spatial import ResBlock, SpatialTransformer, TimeEmbedding
from .temporal import Attention, sdpa


class Sizes(Protocol):
    """The fields of a configuration that an encoder needs; see `dreamvideo.config.RetentionConfig`."""

    @property
    def block_channels(self) -> tuple[int, ...]: ...
    @property
    def attention(self) -> tuple[bool, ...]: ...
    @property
    def heads(self) -> tuple[int, ...]: ...
    @property
    def layers_per_block(self) -> int: ...
    @property
    def context_dim(self) -> int: ...
    @property
    def linear_projection(self) -> bool: ...
    @property
    def inject(self) -> str: ...


@dataclass(frozen=True)
class Residuals:
    """The residuals that a branch adds to the primary U-Net."""

    down: list[Tensor]
    """(n, c, h, w) each. "skips": one for every skip, in the order of the down pass. "up_blocks": one for every down
    block, outermost first; that of down block i is added to the up block at the same level."""
    mid: Tensor


class HintEncoder(nn.Module):
    """Pixels (1 or n, inputs, s h, s w) -> (1 or n, c, h, w). 3x3 convolutions with SiLU; the last one is zero."""

    def __init__(self, hidden: tuple[int, ...], channels: int, ops: Any = nn, *, inputs: int = 3) -> None:
        super().__init__()
        self.conv_in = ops.Conv2d(inputs, hidden[0], 3, padding=1)
        blocks: list[nn.Module] = []
        for a, b in pairwise(hidden):
            blocks += [ops.Conv2d(a, a, 3, padding=1), ops.Conv2d(a, b, 3, padding=1, stride=2)]
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = zero(ops.Conv2d(hidden[-1], channels, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        x = F.silu(self.conv_in(image))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class _Down(nn.Module):
    """ResBlocks, spatial transformers after them, and a downsampling; adds a level to the keys."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], down: nn.Module | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions) if attentions else None
        self.downsamplers = None if down is None else nn.ModuleList([down])


class _Downsample(nn.Module):
    def __init__(self, channels: int, ops: Any) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ControlBranch(nn.Module):
    """The encoder. hint(ops): makes the module that computes z. temporal: a module with modules_by_slot(), or None."""

    def __init__(
        self,
        config: Sizes,
        hint: Callable[[Any], nn.Module],
        *,
        temporal: nn.Module | None = None,
        ops: Any = nn,
        attention: Attention = sdpa,
    ) -> None:
        super().__init__()
        self.sizes = config
        channels, first = config.block_channels, config.block_channels[0]
        self.conv_in = ops.Conv2d(4, first, 3, padding=1)
        self.time_embedding = TimeEmbedding(first, ops)
        self.controlnet_cond_embedding = hint(ops)
        self.down_blocks = nn.ModuleList(self._down(i, ops, attention) for i in range(len(channels)))
        resnets: list[nn.Module] = [ResBlock(channels[-1], channels[-1], 4 * first, ops) for _ in range(2)]
        self.mid_block = _Down(resnets, [self._transformer(-1, ops, attention)], None)
        self.controlnet_down_blocks = nn.ModuleList(zero(ops.Conv2d(c, c, 1)) for c in outlets(config))
        self.controlnet_mid_block = zero(ops.Conv2d(channels[-1], channels[-1], 1))
        self.temporal = temporal

    def _down(self, i: int, ops: Any, attention: Attention) -> _Down:
        config, channels = self.sizes, self.sizes.block_channels
        first, out = channels[max(0, i - 1)], channels[i]
        resnets: list[nn.Module] = [
            ResBlock(out if j else first, out, 4 * channels[0], ops) for j in range(config.layers_per_block)
        ]
        count = config.layers_per_block if config.attention[i] else 0
        attentions: list[nn.Module] = [self._transformer(i, ops, attention) for _ in range(count)]
        return _Down(resnets, attentions, _Downsample(out, ops) if i < len(channels) - 1 else None)

    def _transformer(self, i: int, ops: Any, attention: Attention) -> SpatialTransformer:
        config = self.sizes
        rules: dict[str, Any] = {"heads": config.heads[i], "linear": config.linear_projection, "ops": ops}
        return SpatialTransformer(config.block_channels[i], config.context_dim, attention=attention, **rules)

    def residuals(self, h: Tensor, t: Tensor, context: Tensor, frames: int) -> Residuals:
        """h: conv_in(x) + z, (n, c, h, w); t: timesteps (n,); context: (n, L, d). frames: of a clip."""
        modules: dict[Slot, Any] = {} if self.temporal is None else self.temporal.modules_by_slot()  # type: ignore[operator]
        run = _Pass(self.time_embedding(t, h.dtype), context, frames, modules)
        layers, blocks = [h], []
        for i, block in enumerate(self.down_blocks):
            for j in range(self.sizes.layers_per_block):
                h = run.layer(block, "down", i, j, h)
                layers.append(h)
            blocks.append(h)
            if block.downsamplers is not None:  # type: ignore[union-attr]
                h = block.downsamplers[0](h)  # type: ignore[index, operator]
                layers.append(h)
        h = run.middle(self.mid_block, h)
        features = layers if self.sizes.inject == "skips" else blocks
        down = [out(x) for out, x in zip(self.controlnet_down_blocks, features, strict=True)]
        return Residuals(down, self.controlnet_mid_block(h))


class _Pass:
    """Inputs shared by all layers in one forward pass."""

    def __init__(self, time: Tensor, context: Tensor, frames: int, modules: dict[Slot, Any]) -> None:
        self.time, self.context, self.frames, self.modules = time, context, frames, modules

    def layer(self, block: Any, part: Any, i: int, j: int, x: Tensor) -> Tensor:
        x = self._after(Slot(part, i, j, "resnet"), block.resnets[j](x, self.time))
        if block.attentions is not None:
            x = block.attentions[j](x, self.context, self.frames, self.modules.get(Slot(part, i, j, "attended")))
        return self._after(Slot(part, i, j), x)

    def middle(self, block: Any, x: Tensor) -> Tensor:
        x = self.layer(block, "mid", MIDDLE.block, MIDDLE.layer, x)
        return self._after(Slot("mid", 0, 1, "resnet"), block.resnets[1](x, self.time))

    def _after(self, slot: Slot, x: Tensor) -> Tensor:
        module = self.modules.get(slot)
        return x if module is None else x + module.update(x, self.frames)


def outlets(config: Sizes) -> list[int]:
    """Channels of the output features of the down blocks, in order."""
    channels = config.block_channels
    if config.inject == "up_blocks":
        return list(channels)
    last = len(channels) - 1
    inner = [c for i, c in enumerate(channels) for c in [c] * (config.layers_per_block + (i < last))]
    return [channels[0], *inner]


def zero(module: nn.Module) -> nn.Module:
    """The module, with all weights set to zero."""
    for parameter in module.parameters():  # a host's layers may not have their weights yet
        nn.init.zeros_(parameter)
    return module
