"""The image-retention branch (arXiv 2312.03018, section 4.2, figure 2 and Eq. 3).

    z_r = conv_d(z_t) + conv_s(I), where conv_s(I) of one image I is the same for all frames
    r_1, ..., r_L = zero convolutions of the features of the down and middle blocks on z_r

The residuals r are added to the primary U-Net: to its skips and its middle block ("skips", as in a ControlNet), or to
the outputs of its up blocks ("up_blocks", Eq. 3: z = F_j(z, p) + R_i(z, p, z_s), j = L - i + 1). Every zero convolution
is initialised to zero, so a new branch adds nothing.

Weights have the names of diffusers' ControlNetModel; with "skips" and without temporal layers they are identical.

Shapes: b clips, f frames, n = b f images, c channels, h height, w width of the latents; images are s h x s w pixels
with s = config.downscale (8 for Stable Diffusion).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.slots import MIDDLE, Slot
from ..core.spatial import ResBlock, SpatialTransformer, TimeEmbedding
from ..core.temporal import Attention, sdpa
from .config import RetentionConfig


@dataclass(frozen=True)
class Residuals:
    """The residuals that a branch adds to the primary U-Net."""

    down: list[Tensor]
    """(n, c, h, w) each. "skips": one for every skip, in the order of the down pass. "up_blocks": one for every down
    block, outermost first; that of down block i is added to the up block at the same level."""
    mid: Tensor


class HintEncoder(nn.Module):
    """conv_s: pixels (1 or n, 3, s h, s w) -> (1 or n, c, h, w). 3x3 convolutions with SiLU; the last is zero."""

    def __init__(self, hidden: tuple[int, ...], channels: int, ops: Any = nn) -> None:
        super().__init__()
        self.conv_in = ops.Conv2d(3, hidden[0], 3, padding=1)
        blocks: list[nn.Module] = []
        for a, b in pairwise(hidden):
            blocks += [ops.Conv2d(a, a, 3, padding=1), ops.Conv2d(a, b, 3, padding=1, stride=2)]
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = _zero(ops.Conv2d(hidden[-1], channels, 3, padding=1))

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


class RetentionBranch(nn.Module):
    """The branch. `temporal`: frozen temporal layers with modules_by_slot(), if the config has such layers."""

    def __init__(
        self,
        config: RetentionConfig,
        *,
        temporal: nn.Module | None = None,
        ops: Any = nn,
        attention: Attention = sdpa,
    ) -> None:
        super().__init__()
        if (temporal is not None) != (config.temporal == "frozen"):
            raise ValueError(
                f"retention branch: temporal is {config.temporal!r} in its config, but "
                f"{'no' if temporal is None else 'some'} temporal layers were passed; pass them exactly for 'frozen'"
            )
        self.config = config
        channels, first = config.block_channels, config.block_channels[0]
        self.conv_in = ops.Conv2d(4, first, 3, padding=1)  # conv_d
        self.time_embedding = TimeEmbedding(first, ops)
        self.controlnet_cond_embedding = HintEncoder(config.hint_channels, first, ops)  # conv_s
        self.down_blocks = nn.ModuleList(self._down(i, ops, attention) for i in range(len(channels)))
        resnets: list[nn.Module] = [ResBlock(channels[-1], channels[-1], 4 * first, ops) for _ in range(2)]
        self.mid_block = _Down(resnets, [self._transformer(-1, ops, attention)], None)
        self.controlnet_down_blocks = nn.ModuleList(_zero(ops.Conv2d(c, c, 1)) for c in outlets(config))
        self.controlnet_mid_block = _zero(ops.Conv2d(channels[-1], channels[-1], 1))
        self.temporal = temporal if temporal is None else temporal.requires_grad_(False).eval()

    def _down(self, i: int, ops: Any, attention: Attention) -> _Down:
        config, channels = self.config, self.config.block_channels
        first, out = channels[max(0, i - 1)], channels[i]
        resnets: list[nn.Module] = [
            ResBlock(out if j else first, out, 4 * channels[0], ops) for j in range(config.layers_per_block)
        ]
        count = config.layers_per_block if config.attention[i] else 0
        attentions: list[nn.Module] = [self._transformer(i, ops, attention) for _ in range(count)]
        return _Down(resnets, attentions, _Downsample(out, ops) if i < len(channels) - 1 else None)

    def _transformer(self, i: int, ops: Any, attention: Attention) -> SpatialTransformer:
        config = self.config
        rules: dict[str, Any] = {"heads": config.heads[i], "linear": config.linear_projection, "ops": ops}
        return SpatialTransformer(config.block_channels[i], config.context_dim, attention=attention, **rules)

    def encode(self, image: Tensor) -> Tensor:
        """conv_s(I). image: (1 or n, 3, s h, s w), values from 0 to 1 -> (1 or n, c, h, w)."""
        return self.controlnet_cond_embedding(image if self.config.image_range == "unit" else 2 * image - 1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, z_s: Tensor, frames: int = 1) -> Residuals:
        """x: z_t, (n, 4, h, w); t: timesteps (n,); context: (n, L, d); z_s: `encode` of one image for all n, or of n
        images. frames: of one clip, for temporal layers. ValueError when the size or number of z_s does not match."""
        if z_s.shape[-2:] != x.shape[-2:] or len(z_s) not in (1, len(x)):
            raise ValueError(
                f"retention branch: the image features are {tuple(z_s.shape)}, the latents {tuple(x.shape)}; give one "
                f"image, or one for each latent, with {self.config.downscale} times the height and width of the latents"
            )
        modules: dict[Slot, Any] = {} if self.temporal is None else self.temporal.modules_by_slot()  # type: ignore[operator]
        run = _Pass(self.time_embedding(t, x.dtype), context, frames, modules)
        h = self.conv_in(x) + z_s
        layers, blocks = [h], []
        for i, block in enumerate(self.down_blocks):
            for j in range(self.config.layers_per_block):
                h = run.layer(block, "down", i, j, h)
                layers.append(h)
            blocks.append(h)
            if block.downsamplers is not None:  # type: ignore[union-attr]
                h = block.downsamplers[0](h)  # type: ignore[index, operator]
                layers.append(h)
        h = run.middle(self.mid_block, h)
        features = layers if self.config.inject == "skips" else blocks
        down = [zero(x) for zero, x in zip(self.controlnet_down_blocks, features, strict=True)]
        return Residuals(down, self.controlnet_mid_block(h))

    def train(self, mode: bool = True) -> "RetentionBranch":
        """As for any module, but the frozen temporal layers stay in evaluation mode, without dropout."""
        super().train(mode)
        if self.temporal is not None:
            self.temporal.eval()
        return self

    def trained(self) -> list[nn.Parameter]:
        """The trainable weights: all except the frozen temporal layers."""
        return [p for name, p in self.named_parameters() if not name.startswith("temporal.")]

    def start_from(self, unet: Mapping[str, Tensor]) -> None:
        """Copy a U-Net's down and middle blocks, conv_in and time embedding, in diffusers' names (section 4.2).

        conv_s, the zero convolutions and temporal layers stay. ValueError when a weight is missing or its size differs.
        """
        parameters = {k: v for k, v in self.named_parameters() if not k.startswith(("controlnet_", "temporal."))}
        mismatches = [k for k, v in parameters.items() if k not in unet or unet[k].shape != v.shape]
        if mismatches:
            shape = tuple(unet[mismatches[0]].shape) if mismatches[0] in unet else "missing"
            raise ValueError(
                f"retention branch: {mismatches[0]} is {tuple(parameters[mismatches[0]].shape)} in the branch and "
                f"{shape} in the U-Net; build the branch with the sizes of this U-Net"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(unet[name])


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


def outlets(config: RetentionConfig) -> list[int]:
    """Channels of the output features of the down blocks, in order."""
    channels = config.block_channels
    if config.inject == "up_blocks":
        return list(channels)
    last = len(channels) - 1
    inner = [c for i, c in enumerate(channels) for c in [c] * (config.layers_per_block + (i < last))]
    return [channels[0], *inner]


def _zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():  # a host's layers may not have their weights yet
        nn.init.zeros_(parameter)
    return module
