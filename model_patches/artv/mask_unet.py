"""The mask network: a small U-Net like Stable Diffusion's with one output channel (ART-V, section 3.2, Table 2).

Its inputs are those of the dynamic network: the noisy latent, its noise level, the text, the two previous frames
through an adapter of its own, and the anchor through anchor blocks of its own. Table 2 gives 64 channels, 32 per head,
and 51.18 M parameters in total. RECONSTRUCTED: the sigmoid, and that its adapter and anchor blocks are smaller versions
of the other network's.

Shapes: n images, c channels, h height, w width of the latents, L text tokens, T tokens of the anchor, k and d wide.
"""

from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.config import GROUPS
from ..core.slots import MIDDLE, Slot
from ..core.spatial import ResBlock, SpatialTransformer, timestep_features
from ..core.temporal import Attention, sdpa
from .adapter import ReferenceAdapter
from .config import ArtvConfig
from .noise import level_shift
from .places import AnchorBlocks, stages


def groups_of(channels: int) -> int:
    """Groups of a GroupNorm: 32 as in Stable Diffusion, fewer in narrow networks, with at least two channels each.

    With one channel per group, the norm after the time embedding would remove what the embedding adds.
    """
    return gcd(GROUPS, channels // 2)


class Block(nn.Module):
    """ResBlocks, optional transformers after them, and an optional convolution that changes the resolution."""

    def __init__(
        self, resnets: list[ResBlock], attentions: list[SpatialTransformer], resize: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.resize = resize


class MaskUNet(nn.Module):
    """m of Eq. 7: (n, c, h, w) -> (n, 1, h, w) in 0..1. A new network returns 1/2: its last convolution is zero."""

    def __init__(self, config: ArtvConfig, *, ops: Any = nn, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        channels, heads = config.mask_channels, config.mask_heads
        parts: dict[str, Any] = {"ops": ops, "attention": attention}
        self.reference = ReferenceAdapter(channels, 2 * config.latent_channels, config.adapter_blocks, ops=ops)
        self.anchors = AnchorBlocks(config, channels, heads, **parts)
        first, self.emb = channels[0], 4 * channels[0]
        self.time_embed = nn.Sequential(ops.Linear(first, self.emb), nn.SiLU(), ops.Linear(self.emb, self.emb))
        self.conv_in = ops.Conv2d(config.latent_channels, first, 3, padding=1)
        self._build(ops, attention)
        self.norm_out = ops.GroupNorm(groups_of(first), first)
        self.conv_out = ops.Conv2d(first, 1, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def _build(self, ops: Any, attention: Attention) -> None:
        """The blocks. The first convolution, every layer and every downsampling store a skip."""
        config, channels = self.config, self.config.mask_channels

        def resnets(widths: list[int], c: int) -> list[ResBlock]:
            return [ResBlock(before, c, self.emb, ops, groups_of) for before in widths]

        def transformers(level: int, count: int) -> list[SpatialTransformer]:
            parts = {"heads": config.mask_heads[level], "ops": ops, "attention": attention, "groups": groups_of}
            return [SpatialTransformer(channels[level], config.context_dim, linear=True, **parts) for _ in range(count)]

        layers, last = config.layers_per_block, len(channels) - 1
        skips, width = [channels[0]], channels[0]
        down: list[Block] = []
        for i, c in enumerate(channels):
            halving = ops.Conv2d(c, c, 3, stride=2, padding=1) if i < last else None
            inner = transformers(i, layers * config.attention[i])
            down.append(Block(resnets([width] + [c] * (layers - 1), c), inner, halving))
            skips += [c] * (layers + (i < last))
            width = c
        up: list[Block] = []
        for i, c in reversed(list(enumerate(channels))):
            doubling = ops.Conv2d(c, c, 3, padding=1) if i else None
            widths = [before + skips.pop() for before in [width] + [c] * layers]
            up.append(Block(resnets(widths, c), transformers(i, (layers + 1) * config.attention[i]), doubling))
            width = c
        self.down_blocks, self.up_blocks = nn.ModuleList(down), nn.ModuleList(up)
        self.mid_block = Block(resnets([channels[-1]] * 2, channels[-1]), transformers(last, 1))

    def forward(
        self,
        y_t: Tensor,  # (n, c, h, w), the noisy latent in VP coordinates
        t: Tensor,  # (n,), its time step
        context: Tensor,  # (n, L, d)
        features: list[Tensor],  # from `reference`, (n, ., ., .) each
        tokens: Tensor,  # (n, T, k)
        level: Tensor,  # (n,), noise level of references and anchor
    ) -> Tensor:
        emb = self.embedding(t, level).to(y_t.dtype)
        ends = dict(zip(stages(self.config), features, strict=True))

        def layer(block: Any, slot: Slot, h: Tensor) -> Tensor:
            h = block.resnets[slot.layer](h, emb)
            if len(block.attentions):
                h = block.attentions[slot.layer](h, context)
            h = self.anchors.change(slot, h, tokens)
            return h + ends[slot].to(h) if slot in ends else h

        down: Any = self.down_blocks
        up: Any = self.up_blocks
        h = self.conv_in(y_t)
        skips = [h]
        for i, block in enumerate(down):
            for j in range(len(block.resnets)):
                h = layer(block, Slot("down", i, j), h)
                skips.append(h)
            if block.resize is not None:
                h = block.resize(h)
                skips.append(h)
        h = self.mid_block.resnets[1](layer(self.mid_block, MIDDLE, h), emb)
        for i, block in enumerate(up):
            for j in range(len(block.resnets)):
                h = layer(block, Slot("up", i, j), torch.cat([h, skips.pop()], dim=1))
            if block.resize is not None:
                h = block.resize(F.interpolate(h, skips[-1].shape[-2:], mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h))).float().sigmoid()

    def embedding(self, t: Tensor, level: Tensor) -> Tensor:
        """Embedding of the time step plus that of the level: (n,) -> (n, emb)."""
        channels = self.config.mask_channels[0]
        emb = self.time_embed(timestep_features(t, channels))
        shift = level_shift(self.time_embed, channels, t, level, self.config.level_embedding)
        return emb if shift is None else emb + shift
