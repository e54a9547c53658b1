"""Where a U-Net of Stable Diffusion's family takes temporal modules, in words that belong to no host.

A slot means: after the spatial part of one layer, i.e. after its ResBlock and, where the layer has one, after its
spatial transformer, before any down- or upsampling. In the middle block (ResBlock, transformer, ResBlock) it is the
place before the last ResBlock, as in AnimateDiff v2 and in diffusers.
"""

from dataclasses import dataclass
from typing import Literal

from .config import MotionConfig

Part = Literal["down", "mid", "up"]


@dataclass(frozen=True, order=True)
class Slot:
    part: Part
    block: int
    """Counted from the outside in for "down", from the inside out for "up", as the blocks run."""
    layer: int

    def __str__(self) -> str:
        return "mid" if self.part == "mid" else f"{self.part} block {self.block}, layer {self.layer}"


MIDDLE = Slot("mid", 0, 0)


def slots(config: MotionConfig) -> dict[Slot, int]:
    """Slot -> channels, in the order of a forward pass."""
    channels, layers = config.block_channels, config.layers_per_block
    down = {Slot("down", i, j): c for i, c in enumerate(channels) for j in range(layers)}
    up = {Slot("up", i, j): c for i, c in enumerate(reversed(channels)) for j in range(layers + 1)}
    return down | ({MIDDLE: channels[-1]} if config.mid_block else {}) | up
