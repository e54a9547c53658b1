"""AnimateDiff's temporal transformer (Guo et al. 2023, arXiv:2307.04725v2, section 4.2 and figure 3).

Between the spatial layers of a frozen image U-Net, every pixel attends to itself in the other frames:

    z <- z + W_out T(W_in GroupNorm(z)),   T = [attention, attention, feed-forward], each residual and pre-normed,
    attention: softmax(Q K^T / sqrt(d)) V over the frames, Q, K, V from LayerNorm(z) + sinusoidal position.

W_out is initialised to zero, so a new module is the identity. Parameter names are those of the released weights.
GroupNorm takes its statistics over one frame ("per_frame", as the released v2 and v3 weights were trained) or over the
clip ("per_clip", as diffusers computes it).

Shapes: b clips, f frames, c channels, h height, w width, B = b h w pixels. A batch of frames is (b f, c, h, w).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import GROUPS, MotionConfig, check_channels
from .slots import Slot, slots

# Numbers in the widest tensor of a part: 10 MB in fp32. Larger parts cause page faults; smaller ones would read the
# weights of SD 1.5's widest layers (8 x 1280 for 16 pixels of 16 frames) twice.
CPU_PART = 256 * 8 * 1280
Attention = Callable[..., Tensor]
"""attention(q, k, v, heads, options) -> the shape of q; `options` is what the host passes to `update`, or None."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int, _options: Any = None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V per head. q, k, v: (B, tokens, heads * d) -> the same."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, tokens, d)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def sinusoid(length: int, channels: int) -> Tensor:
    """Vaswani et al. 2017, arXiv:1706.03762, section 3.5: sin and cos of n / 10000^(2i/c). (length, channels)."""
    n = torch.arange(length).unsqueeze(1)
    angle = n * torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


def check_frames(batch: int, frames: int, max_frames: int | None = None) -> None:
    """ValueError unless the batch consists of whole clips of `frames` frames that fit in the positional table."""
    if frames < 1:
        raise ValueError(f"motion model: frames is {frames}; a clip has at least 1 frame")
    if batch % frames:
        raise ValueError(
            f"motion model: a batch of {batch} images cannot be divided into clips of {frames} frames; "
            f"make the batch a multiple of {frames}, or set frames to the batch size"
        )
    if max_frames is not None and frames > max_frames:
        raise ValueError(
            f"motion model: a clip has {frames} frames, but this motion model knows positions for only "
            f"{max_frames}; use at most {max_frames} frames, or context windows of that length"
        )


def in_parts(run: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """run(tokens), (B, f, c) -> same. Pixels are independent, so a CPU computes some at a time, to use its caches."""
    part = max(1, CPU_PART // (8 * tokens[0].numel()))
    if tokens.device.type != "cpu" or len(tokens) <= part:
        return run(tokens)
    return torch.cat([run(pixels) for pixels in tokens.split(part)])


class PositionTable(nn.Module):
    """Adds the position of each frame. The table is a buffer: it is saved with the weights, but not trained."""

    pe: Tensor

    def __init__(self, channels: int, max_frames: int) -> None:
        super().__init__()
        self.register_buffer("pe", sinusoid(max_frames, channels)[None])

    def forward(self, x: Tensor) -> Tensor:  # (B, f, c) -> same
        return x + self.pe[:, : x.shape[1]].to(x)


class FrameAttention(nn.Module):
    """Self-attention over the frames of one pixel."""

    def __init__(self, channels: int, heads: int, max_frames: int | None, ops: Any, attention: Attention) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.to_q, self.to_k, self.to_v = (ops.Linear(channels, channels, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([ops.Linear(channels, channels)])
        self.pos_encoder = None if max_frames is None else PositionTable(channels, max_frames)

    def forward(self, x: Tensor, options: Any = None) -> Tensor:  # (B, f, c) -> same
        if self.pos_encoder is not None:
            x = self.pos_encoder(x)
        return self.to_out[0](self.attention(self.to_q(x), self.to_k(x), self.to_v(x), self.heads, options))


class GEGLU(nn.Module):
    """Shazeer 2020, arXiv:2002.05202: (x W + b) * gelu(x V + c), W and V in one matrix."""

    def __init__(self, channels: int, inner: int, ops: Any) -> None:
        super().__init__()
        self.proj = ops.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:  # (B, f, c) -> (B, f, inner)
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """A GEGLU that is `widening` times as wide as its input, and a linear layer back to the input's width."""

    def __init__(self, channels: int, ops: Any, widening: int = 4) -> None:
        super().__init__()
        inner = widening * channels
        # The middle entry replaces the dropout of the original, so that the keys net.0 and net.2 stay the same.
        self.net = nn.Sequential(GEGLU(channels, inner, ops), nn.Identity(), ops.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:  # (B, f, c) -> same
        return self.net(x)


class TransformerBlock(nn.Module):
    """Attentions over the frames (two in AnimateDiff) and a feed-forward, each added to its input."""

    def __init__(
        self, channels: int, heads: int, max_frames: int | None, ops: Any, attention: Attention, attentions: int = 2
    ) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            FrameAttention(channels, heads, max_frames, ops, attention) for _ in range(attentions)
        )
        self.norms = nn.ModuleList(ops.LayerNorm(channels) for _ in range(attentions))
        self.ff = FeedForward(channels, ops)
        self.ff_norm = ops.LayerNorm(channels)

    def forward(self, x: Tensor, options: Any = None) -> Tensor:  # (B, f, c) -> same
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x), options)
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    """The residual update of one slot."""

    def __init__(
        self,
        channels: int,
        heads: int,
        max_frames: int | None,
        group_norm: str,
        ops: Any,
        attention: Attention,
        attentions: int = 2,
    ) -> None:
        super().__init__()
        self.per_clip = group_norm == "per_clip"
        self.norm = ops.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = ops.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, heads, max_frames, ops, attention, attentions)]
        )
        self.proj_out = ops.Linear(channels, channels)
        for parameter in self.proj_out.parameters():  # a host's layers may not have their weights yet
            nn.init.zeros_(parameter)

    def normed(self, x: Tensor, frames: int) -> Tensor:  # (b f, c, h, w) -> (b, f, c, h, w)
        if not self.per_clip:
            return self.norm(x).unflatten(0, (-1, frames))
        return self.norm(x.unflatten(0, (-1, frames)).transpose(1, 2)).transpose(1, 2)

    def transformed(self, tokens: Tensor, options: Any) -> Tensor:  # (B, f, c) -> same
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, options)
        return self.proj_out(tokens)

    def forward(self, x: Tensor, frames: int, options: Any = None) -> Tensor:  # (b f, c, h, w) -> same
        _, _, h, w = x.shape
        # one copy into the order of the attention, for all layers in between; one copy back
        tokens = self.normed(x, frames).permute(0, 3, 4, 1, 2).flatten(0, 2).contiguous()  # (B, f, c)
        tokens = in_parts(lambda part: self.transformed(part, options), tokens)
        return tokens.unflatten(0, (-1, h, w)).permute(0, 3, 4, 1, 2).flatten(0, 1)


class MotionModule(nn.Module):
    """x + update(x): the module of one slot. A new module is the identity, bit for bit.

    The host provides the layer classes (`ops`: Linear, GroupNorm, LayerNorm) and `attention(q, k, v, heads, options)`
    over (B, tokens, heads * d). `max_frames=None` omits the positional tables. `attentions`: their number in a block.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 8,
        max_frames: int | None = 32,
        group_norm: str = "per_frame",
        ops: Any = nn,
        attention: Attention = sdpa,
        attentions: int = 2,
    ) -> None:
        super().__init__()
        check_channels(channels, heads)
        self.max_frames = max_frames
        self.temporal_transformer = TemporalTransformer(
            channels, heads, max_frames, group_norm, ops, attention, attentions
        )

    def update(self, x: Tensor, frames: int, options: Any = None) -> Tensor:
        """The residual for x. x: (b f, c, h, w) -> same. ValueError unless the batch is whole clips that fit.

        options: passed to the host's attention.
        """
        check_frames(x.shape[0], frames, self.max_frames)
        return self.temporal_transformer(x, frames, options)

    def forward(self, x: Tensor, frames: int) -> Tensor:  # (b f, c, h, w) -> same
        return x + self.update(x, frames)


class _Block(nn.Module):
    """Adds the level `motion_modules` to the keys."""

    def __init__(self, modules: list[MotionModule]) -> None:
        super().__init__()
        self.motion_modules = nn.ModuleList(modules)


class MotionModel(nn.Module):
    """The modules of all slots of one U-Net; its state dict is a motion file in AnimateDiff's layout.

    It has no forward method: a host calls the module of each slot at its place in the U-Net.
    """

    def __init__(self, config: MotionConfig, *, ops: Any = nn, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        length = config.max_frames if config.position_encoding else None
        modules: dict[tuple[str, int], list[MotionModule]] = {}
        for slot, channels in slots(config).items():
            module = MotionModule(
                channels,
                heads=config.heads,
                max_frames=length,
                group_norm=config.group_norm,
                ops=ops,
                attention=attention,
            )
            modules.setdefault((slot.part, slot.block), []).append(module)
        depth = range(len(config.block_channels))
        self.down_blocks = nn.ModuleList(_Block(modules["down", i]) for i in depth)
        self.up_blocks = nn.ModuleList(_Block(modules["up", i]) for i in depth)
        self.mid_block = _Block(modules["mid", 0]) if config.mid_block else None

    def module(self, slot: Slot) -> MotionModule:
        """The module of a slot; KeyError when this model has none there."""
        return self.modules_by_slot()[slot]

    def modules_by_slot(self) -> dict[Slot, MotionModule]:
        """Slot -> module, in the order of a forward pass."""
        blocks: dict[str, Any] = {"down": self.down_blocks, "mid": [self.mid_block], "up": self.up_blocks}
        return {slot: blocks[slot.part][slot.block].motion_modules[slot.layer] for slot in slots(self.config)}
