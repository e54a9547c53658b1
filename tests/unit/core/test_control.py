"""Every temporal layer of an encoder runs once, after its spatial layer, with the frames of a clip."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from stillmotion.model_patches.core.control import ControlBranch, HintEncoder, outlets
from stillmotion.model_patches.core.slots import MIDDLE, Slot


@dataclass(frozen=True)
class Sizes:
    block_channels: tuple[int, ...] = (32, 64)
    attention: tuple[bool, ...] = (False, True)
    heads: tuple[int, ...] = (2, 2)
    layers_per_block: int = 2
    context_dim: int = 16
    linear_projection: bool = True
    inject: str = "skips"


SLOTS = [
    *[(Slot("down", 0, j, place), 32) for j in range(2) for place in ("resnet", "layer")],
    *[(Slot("down", 1, j, place), 64) for j in range(2) for place in ("resnet", "attended", "layer")],
    *[(Slot("mid", 0, 0, place), 64) for place in ("resnet", "attended", "layer")],
    (Slot("mid", 0, 1, "resnet"), 64),
]


class Noted(nn.Module):
    """A layer for every slot, which notes its input and adds 1."""

    def __init__(self, slots) -> None:
        super().__init__()
        self.slots, self.calls = slots, []

    def modules_by_slot(self):
        return {slot: _Layer(slot, self.calls) for slot in self.slots}


class _Layer:
    def __init__(self, slot, calls) -> None:
        self.slot, self.calls = slot, calls

    def update(self, x, frames, *_options):
        self.calls.append((self.slot, x.shape[2] if self.slot.place == "attended" else x.shape[1], frames))
        return torch.ones_like(x)


def hint(ops: Any) -> nn.Module:
    return HintEncoder((4, 8), 32, ops)


@torch.no_grad()
def test_every_temporal_layer_runs_once_and_in_order():
    temporal = Noted([slot for slot, _ in SLOTS])
    branch = ControlBranch(Sizes(), hint, temporal=temporal)
    branch.residuals(torch.randn(6, 32, 4, 4), torch.arange(6), torch.randn(6, 3, 16), 3)
    assert temporal.calls == [(slot, channels, 3) for slot, channels in SLOTS]
    assert MIDDLE in temporal.slots


@torch.no_grad()
@pytest.mark.parametrize("inject", ["skips", "up_blocks"])
def test_the_outputs_have_the_channels_and_sizes_of_the_unet(inject):
    branch = ControlBranch(Sizes(inject=inject), hint)
    residuals = branch.residuals(torch.randn(2, 32, 6, 4), torch.arange(2), torch.randn(2, 3, 16), 1)
    inner = [(2, 32, 6, 4), (2, 32, 6, 4), (2, 32, 3, 2), (2, 64, 3, 2), (2, 64, 3, 2)]
    expected = [(2, 32, 6, 4), *inner] if inject == "skips" else [(2, 32, 6, 4), (2, 64, 3, 2)]
    assert [tuple(x.shape) for x in residuals.down] == expected
    assert outlets(branch.sizes) == [shape[1] for shape in expected]
    assert residuals.mid.shape == (2, 64, 3, 2)
    assert not any(x.any() for x in (*residuals.down, residuals.mid))  # a new encoder adds nothing


@torch.no_grad()
def test_a_new_hint_adds_nothing_and_halves_the_size_once_for_each_width():
    encoder = HintEncoder((4, 8, 16), 32, inputs=5)
    features = encoder(torch.randn(2, 5, 12, 8))
    assert features.shape == (2, 32, 3, 2)
    assert not features.any()
    convolutions: Any = encoder.blocks
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions] == [
        (4, 4, 1),
        (4, 8, 2),
        (8, 8, 1),
        (8, 16, 2),
    ]
