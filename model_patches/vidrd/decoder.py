"""VidRD's temporal-aware decoder (arXiv 2309.03549, section 3.4): Temp-Convs in the up blocks of a frozen autoencoder.

A Temp-Conv of three layers follows each ResNet of the up blocks; the middle block is unchanged. With the sizes of
Stable Diffusion these are 12 Temp-Convs with 16.41 M parameters in total. A host passes its decoder as `stages`: the
layers that run on each frame alone, cut at the Temp-Convs, so there is one more stage than there are Temp-Convs. Then

    decode    computes the whole clip at once,
    stream    computes the same frames part by part, in memory that does not grow with the length.

In a stream, each Temp-Conv keeps a halo of as many frames as its receptive field reaches on either side. The output is
therefore delayed, by twelve times three frames for Stable Diffusion, and equals that of `decode`. This requires
GroupNorm statistics per frame: statistics over the clip, as published, need the whole clip.

Shapes: f frames, (f, c, h, w) at every stage; the input of the first stage is latents, the output of the last images.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .config import DecoderConfig
from .layers import TemporalConv

Stage = Callable[[Tensor], Tensor]


class _Level(nn.Module):
    """Adds the level `temp_convs` to the keys."""

    def __init__(self, convs: list[TemporalConv]) -> None:
        super().__init__()
        self.temp_convs = nn.ModuleList(convs)


class TemporalDecoder(nn.Module):
    """The Temp-Convs of one decoder. Keys: `up_blocks.I.temp_convs.J.convs.N`, blocks in the order of execution."""

    def __init__(self, config: DecoderConfig, *, ops: Any = nn) -> None:
        super().__init__()
        self.config = config
        rules = {"layers": config.conv_layers, "dropout": config.dropout, "group_norm": config.group_norm}
        self.up_blocks = nn.ModuleList(
            _Level([TemporalConv(channels, ops=ops, **rules) for _ in range(config.layers_per_block + 1)])
            for channels in reversed(config.block_channels)
        )

    def layers(self) -> list[TemporalConv]:
        """In the order of a forward pass."""
        blocks: list[Any] = list(self.up_blocks)
        return [conv for block in blocks for conv in block.temp_convs]


def cut(begin: Stage, blocks: Iterable[tuple[Sequence[Stage], Sequence[Stage]]], end: Stage) -> list[Stage]:
    """The stages of a decoder that runs `begin`, its up blocks, then `end`, cut after each ResNet.

    blocks: the ResNets of each block, in the order of execution, and the layers after them: an upsampling, or none.
    """
    stages: list[Stage] = []
    pending: list[Stage] = [begin]
    for resnets, after in blocks:
        for resnet in resnets:
            stages.append(_chain([*pending, resnet]))
            pending = []
        pending = list(after)
    return [*stages, _chain([*pending, end])]


def _chain(parts: Sequence[Stage]) -> Stage:
    def run(x: Tensor) -> Tensor:
        for part in parts:
            x = part(x)
        return x

    return run


def decode(stages: Sequence[Stage], layers: Sequence[TemporalConv], latents: Tensor, frames: int) -> Tensor:
    """Whole clips of `frames` at once: (b f, c, h, w) -> images (b f, 3, H, W)."""
    x = latents
    for stage, layer in zip(stages[:-1], layers, strict=True):
        x = layer(stage(x), frames)
    return stages[-1](x)


def stream(stages: Sequence[Stage], layers: Sequence[TemporalConv], parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Decode one clip of any length, passed in parts (f, c, h, w); the images come in parts of other sizes.

    ValueError when a layer has statistics over the clip; such a decoder works clip by clip.
    """
    if any(layer.per_clip for layer in layers):
        raise ValueError(
            "temporal decoder: its GroupNorm takes statistics over the whole clip (per_clip), so it cannot decode a "
            "stream; decode clip by clip, or train a decoder with group_norm per_frame"
        )
    frames: Iterator[Tensor] = iter(parts)
    for stage, layer in zip(stages[:-1], layers, strict=True):
        frames = _halo(layer, map(stage, frames))
    return map(stages[-1], frames)


def _halo(layer: TemporalConv, parts: Iterator[Tensor]) -> Iterator[Tensor]:
    """Apply the layer to a clip that arrives in parts. A frame is output once its `radius` successors have arrived.

    window: the frames that are still needed; its first `offset` frames have already been output. The layer's padding is
    correct at the ends of the clip. Inside the clip it affects the `radius` outermost frames, which are not output.
    """
    window, offset, r = None, 0, layer.radius
    for part in parts:
        window = part if window is None else torch.cat([window, part])
        end = len(window) - r
        if end <= offset:
            continue
        yield layer(window, len(window))[offset:end]
        window, offset = window[max(0, end - r) :], min(r, end)
    if window is not None:
        yield layer(window, len(window))[offset:]
