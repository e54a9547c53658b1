"""GroupNorms of an image U-Net with statistics over all frames of a clip.

AnimateDiff v1 (arXiv:2307.04725) was trained in a U-Net whose GroupNorms see the clip as one volume: its configuration
has `use_inflated_groupnorm: false`, so that the ResBlocks and the output normalise (clips, c, f, h, w). Later versions
normalise every frame. The norms inside the spatial transformers see single frames in all versions.

Shapes: the U-Net's batch is (clips * f, c, h, w), the frames of a clip one after another.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


def as_volumes(x: Tensor, frames: int) -> Tensor:
    """(clips * f, c, h, w) -> (clips, c, f, h, w)"""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)


def as_frames(x: Tensor) -> Tensor:
    """The inverse of `as_volumes`."""
    return x.transpose(1, 2).flatten(0, 1)


@contextmanager
def norms_over_clips(norms: Iterable[nn.Module], frames: int) -> Iterator[None]:
    """Within this context, these GroupNorms get the clip as one volume. Afterwards they are as before.

    torch's forward hooks change their input and output, so the norms keep their weights, wherever these are loaded.
    """

    def before(_norm: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return as_volumes(args[0], frames), *args[1:]

    def after(_norm: nn.Module, _args: tuple[Any, ...], x: Tensor) -> Tensor:
        return as_frames(x)

    with ExitStack() as stack:
        for norm in norms:
            stack.callback(norm.register_forward_pre_hook(before).remove)
            stack.callback(norm.register_forward_hook(after).remove)
        yield
