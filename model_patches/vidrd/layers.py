"""VidRD's temporal layers: Temp-Conv and Temp-Attn (arXiv 2309.03549, section 3.2, figure 3, and its published code).

    Temp-Conv   z <- z + C(...C(z)),   C(z) = Conv3d_{3,1,1}(Dropout(SiLU(GroupNorm(z)))), last Conv3d initially zero
    Temp-Attn   z <- z + e + W A(LayerNorm(z + e)),   A self-attention over the frames of a pixel, W initially zero

e is the sinusoidal embedding of the frame. The published code adds it to the features themselves, so a new network is
the image model plus e, not the image model. With `embedding="branch"`, which is ours, it is only added to the input of
the attention: z <- z + W A(LayerNorm(z + e)). A clip of one frame passes through both layers unchanged.

Shapes: b clips, f frames, c channels, h height, w width, p = h w pixels. A batch of frames is (b f, c, h, w), as tokens
(b f, p, c).
"""

from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from ..core.config import GROUPS
from ..core.temporal import Attention, FeedForward, FrameAttention, check_frames, in_parts, sdpa, sinusoid


def groups_of(channels: int) -> int:
    """Groups of a Temp-Conv's GroupNorm: 32, or the greatest common divisor of 32 and the channels (ours)."""
    return gcd(GROUPS, channels)


class TemporalConv(nn.Module):
    """x + update(x): `layers` times (GroupNorm, SiLU, Dropout, convolution over three frames at each pixel).

    A new layer is the identity, bit for bit. `group_norm`: statistics over the clip ("per_clip", as published) or over
    each frame ("per_frame"); with the latter a frame depends only on `radius` neighbours on either side.
    """

    max_frames: int | None = None  # read by hosts; a clip may have any length

    def __init__(
        self, channels: int, *, layers: int, dropout: float = 0.1, group_norm: str = "per_clip", ops: Any = nn
    ) -> None:
        super().__init__()
        self.radius = layers
        self.per_clip = group_norm == "per_clip"
        steps: list[nn.Module] = []
        for _ in range(layers):
            convolution = ops.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
            steps += [ops.GroupNorm(groups_of(channels), channels), nn.SiLU(), nn.Dropout(dropout), convolution]
        self.convs = nn.ModuleList(steps)
        _zero(self.convs[-1])

    @property
    def last(self) -> Tensor:
        """The weight of the last convolution."""
        convolution: Any = self.convs[-1]
        return convolution.weight

    def update(self, x: Tensor, frames: int, _options: Any = None) -> Tensor:
        """The residual for x. x: (b f, c, h, w) -> same. ValueError when the batch is not whole clips."""
        check_frames(x.shape[0], frames)
        if frames == 1:
            return torch.zeros_like(x)
        z = x.unflatten(0, (-1, frames)).transpose(1, 2).contiguous()  # (b, c, f, h, w)
        for step in self.convs:
            z = self._normed(step, z) if isinstance(step, nn.GroupNorm) else step(z)
        return z.transpose(1, 2).flatten(0, 1)

    def forward(self, x: Tensor, frames: int) -> Tensor:  # (b f, c, h, w) -> same
        return x if frames == 1 else x + self.update(x, frames)

    def _normed(self, norm: nn.Module, z: Tensor) -> Tensor:  # (b, c, f, h, w) -> same
        if self.per_clip:
            return norm(z)
        frames = z.transpose(1, 2)  # (b, f, c, h, w)
        return norm(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2).contiguous()


class TemporalAttention(nn.Module):
    """x + update(x) on tokens, between cross-attention and feed-forward of a spatial transformer."""

    max_frames: int | None = None  # the embedding is computed for any length

    def __init__(
        self, channels: int, *, heads: int, embedding: str = "stream", ops: Any = nn, attention: Attention = sdpa
    ) -> None:
        super().__init__()
        self.stream = embedding == "stream"
        self.temp_norm = ops.LayerNorm(channels)
        self.temp_attn = FrameAttention(channels, heads, None, ops, attention)
        _zero(self.temp_attn.to_out)

    def update(self, x: Tensor, frames: int, options: Any = None) -> Tensor:
        """The residual for x. x: (b f, p, c) -> same. ValueError when the batch is not whole clips.

        options: passed to the host's attention.
        """
        check_frames(x.shape[0], frames)
        if frames == 1:
            return torch.zeros_like(x)
        e = sinusoid(frames, x.shape[2]).to(x)  # (f, c)
        tokens = (x.unflatten(0, (-1, frames)) + e[:, None]).transpose(1, 2).flatten(0, 1)  # (b p, f, c)
        change = in_parts(lambda part: self.temp_attn(self.temp_norm(part), options), tokens)
        change = change + e if self.stream else change
        return change.unflatten(0, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1)

    def forward(self, x: Tensor, frames: int) -> Tensor:  # (b f, p, c) -> same
        return x if frames == 1 else x + self.update(x, frames)


class SpatialBlock(TemporalAttention):
    """Temp-Attn, and the weights of the fine-tuned transformer block around it, which a host copies into its own block.

    Self-attention, cross-attention from `context` channels and feed-forward, each with its norm, under diffusers'
    names. Together with Temp-Attn they are the content of `transformer_blocks.0` in a VidRD checkpoint.
    """

    def __init__(
        self,
        channels: int,
        context: int,
        *,
        heads: int,
        embedding: str = "stream",
        ops: Any = nn,
        attention: Attention = sdpa,
    ) -> None:
        super().__init__(channels, heads=heads, embedding=embedding, ops=ops, attention=attention)
        self.norm1, self.norm2, self.norm3 = (ops.LayerNorm(channels) for _ in range(3))
        self.attn1 = FrameAttention(channels, heads, None, ops, attention)
        self.attn2 = FrameAttention(channels, heads, None, ops, attention)
        self.attn2.to_k, self.attn2.to_v = (ops.Linear(context, channels, bias=False) for _ in range(2))
        self.ff = FeedForward(channels, ops)


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():  # a host's layers may not have their weights yet
        nn.init.zeros_(parameter)
