"""VidRD's temporal-aware decoder (arXiv 2309.03549, section 3.4): Temp-Convs in the up blocks of a frozen autoencoder.

A Temp-Conv of three layers follows each ResNet of the up blocks; the middle block stays as it is. At the sizes of
Stable Diffusion that is 12 Temp-Convs of 16.41 M parameters. A host gives its decoder as `stages`: what it runs on each
frame alone, cut at the Temp-Convs, so one stage more than Temp-Convs. Then

    decode    is the whole clip at once,
    stream    is the same frames, part by part, with nothing held that grows with the length.

In a stream each Temp-Conv keeps a halo of as many frames as it looks at on either side, its receptive field. So the
frames come out later than they go in, twelve times three frames for Stable Diffusion, and equal those of `decode`. That
holds for a GroupNorm per frame only: statistics over the clip, as published, need the clip to end.

Shapes: f frames, (f, c, h, w) at every stage; the first takes latents, the last gives images.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .config import DecoderConfig
from .layers import TemporalConv

Stage = Callable[[Tensor], Tensor]


class _Level(nn.Module):
    """Only a name in the keys: `temp_convs`."""

    def __init__(self, convs: list[TemporalConv]) -> None:
        super().__init__()
        self.temp_convs = nn.ModuleList(convs)


class TemporalDecoder(nn.Module):
    """The Temp-Convs of one decoder. Keys: `up_blocks.I.temp_convs.J.convs.N`, the blocks in the order they run."""

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
    """The stages of a decoder that runs `begin`, its up blocks, `end`, cut behind each ResNet.

    blocks: the ResNets of each, in the order they run, and what follows them: an upsampling, or nothing.
    """
    found: list[Stage] = []
    before: list[Stage] = [begin]
    for resnets, after in blocks:
        for resnet in resnets:
            found.append(_chain([*before, resnet]))
            before = []
        before = list(after)
    return [*found, _chain([*before, end])]


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
    """One clip of any length, given in parts (f, c, h, w), as images in parts of other sizes.

    ValueError where a layer has statistics over the clip; decode such clip by clip.
    """
    if any(layer.per_clip for layer in layers):
        raise ValueError(
            "temporal decoder: its GroupNorm takes statistics over the whole clip (per_clip), so it has no stream; "
            "decode it clip by clip, or train one with group_norm per_frame"
        )
    flowing: Iterator[Tensor] = iter(parts)
    for stage, layer in zip(stages[:-1], layers, strict=True):
        flowing = _halo(layer, map(stage, flowing))
    return map(stages[-1], flowing)


def _halo(layer: TemporalConv, parts: Iterator[Tensor]) -> Iterator[Tensor]:
    """The layer on a clip that comes in parts. A frame is given on when its `radius` next ones are there.

    kept: the frames still needed, of which the first `past` have been given on already. Where the clip begins or ends
    the layer's own padding is right; elsewhere what it spoils are the `radius` outermost frames, which are not used.
    """
    kept, past, r = None, 0, layer.radius
    for part in parts:
        kept = part if kept is None else torch.cat([kept, part])
        ready = len(kept) - r
        if ready <= past:
            continue
        yield layer(kept, len(kept))[past:ready]
        kept, past = kept[max(0, ready - r) :], min(r, ready)
    if kept is not None:
        yield layer(kept, len(kept))[past:]
