"""Layers of Stable Diffusion's U-Net (Rombach et al. 2022, arXiv:2112.10752), for modules that are copies of its parts.

The parameter names are those of diffusers, so that the weights of a U-Net or a ControlNet can be loaded directly. Layer
classes and attention come from the host.

Shapes: n images, c channels, h height, w width, p = h w pixels, e channels of the time embedding.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import GROUPS
from .temporal import Attention, FeedForward, FrameAttention, sdpa


def usual_groups(_channels: int) -> int:
    """Groups of a GroupNorm in Stable Diffusion, which do not depend on the channels."""
    return GROUPS


def timestep_features(t: Tensor, channels: int) -> Tensor:
    """Ho et al. 2020, arXiv:2006.11239: cos and sin of t / 10000^(2i/c). t: (n,) -> (n, channels), float32."""
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000.0) / half))
    angle = t.float()[:, None] * frequencies
    return torch.cat((angle.cos(), angle.sin()), dim=1)


class TimeEmbedding(nn.Module):
    """Linear, SiLU, Linear, applied to the features of t."""

    def __init__(self, channels: int, ops: Any) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = ops.Linear(channels, 4 * channels)
        self.linear_2 = ops.Linear(4 * channels, 4 * channels)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:  # (n,) -> (n, e)
        return self.linear_2(F.silu(self.linear_1(timestep_features(t, self.channels).to(dtype))))


class ResBlock(nn.Module):
    """x + conv2(SiLU(norm2(conv1(SiLU(norm1(x))) + W SiLU(time)))), with a 1x1 convolution on x if channels change."""

    def __init__(
        self, channels: int, out: int, time: int, ops: Any, groups: Callable[[int], int] = usual_groups
    ) -> None:
        super().__init__()
        self.norm1 = ops.GroupNorm(groups(channels), channels, eps=1e-5)
        self.conv1 = ops.Conv2d(channels, out, 3, padding=1)
        self.time_emb_proj = ops.Linear(time, out)
        self.norm2 = ops.GroupNorm(groups(out), out, eps=1e-5)
        self.conv2 = ops.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = None if channels == out else ops.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # (n, c, h, w), (n, e) -> (n, out, h, w)
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.time_emb_proj(F.silu(time))[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + y


class CrossAttention(FrameAttention):
    """Attention of the pixels of an image to the text, or to themselves."""

    def __init__(self, channels: int, context: int, heads: int, ops: Any, attention: Attention) -> None:
        super().__init__(channels, heads, None, ops, attention)
        if context != channels:
            self.to_k, self.to_v = (ops.Linear(context, channels, bias=False) for _ in range(2))

    def forward(self, x: Tensor, options: Any = None, context: Tensor | None = None) -> Tensor:
        """(n, p, c), (n, L, d) -> (n, p, c)"""
        source = x if context is None else context
        return self.to_out[0](self.attention(self.to_q(x), self.to_k(source), self.to_v(source), self.heads, options))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each added to its input. `temporal` runs before the
    feed-forward. `widening`: expansion factor of the feed-forward."""

    def __init__(
        self,
        channels: int,
        context: int,
        heads: int,
        ops: Any = nn,
        attention: Attention = sdpa,
        *,
        widening: int = 4,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (ops.LayerNorm(channels) for _ in range(3))
        self.attn1 = CrossAttention(channels, channels, heads, ops, attention)
        self.attn2 = CrossAttention(channels, context, heads, ops, attention)
        self.ff = FeedForward(channels, ops, widening)

    def forward(
        self, x: Tensor, context: Tensor, frames: int = 1, temporal: Any = None, options: Any = None
    ) -> Tensor:  # (n, p, c) -> same
        x = x + self.attn1(self.norm1(x), options)
        x = x + self.attn2(self.norm2(x), options, context)
        if temporal is not None:
            x = x + temporal.update(x, frames)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """x + out(Block(in(norm(x)))). The projections are linear in Stable Diffusion 2, 1x1 convolutions in 1.5."""

    def __init__(
        self,
        channels: int,
        context: int,
        *,
        heads: int,
        linear: bool,
        ops: Any = nn,
        attention: Attention = sdpa,
        groups: Callable[[int], int] = usual_groups,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = ops.GroupNorm(groups(channels), channels, eps=1e-6)
        self.proj_in, self.proj_out = (
            ops.Linear(channels, channels) if linear else ops.Conv2d(channels, channels, 1) for _ in range(2)
        )
        self.transformer_blocks = nn.ModuleList([Block(channels, context, heads, ops, attention)])

    def forward(self, x: Tensor, context: Tensor, frames: int = 1, temporal: Any = None) -> Tensor:
        """x: (n, c, h, w), context: (n, L, d) -> the shape of x. temporal: a module with update(tokens, frames), which
        runs between cross-attention and feed-forward; tokens: (n, p, c)."""
        z = self.norm(x)
        z = _tokens(z) if self.linear else _tokens(self.proj_in(z))
        z = self.proj_in(z) if self.linear else z
        for block in self.transformer_blocks:
            z = block(z, context, frames, temporal)
        z = _images(self.proj_out(z), x) if self.linear else self.proj_out(_images(z, x))
        return x + z


def _tokens(x: Tensor) -> Tensor:  # (n, c, h, w) -> (n, p, c)
    return x.flatten(2).transpose(1, 2).contiguous()


def _images(tokens: Tensor, like: Tensor) -> Tensor:  # (n, p, c) -> (n, c, h, w)
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])
