"""Where temporal modules are attached in a U-Net of Stable Diffusion's family, independent of the host.

A slot is a place in one layer. A layer is a ResBlock and an optional spatial transformer; downsampling and upsampling
come after it. The places, in the order of a forward pass:

    resnet      after the ResBlock
    attended    inside the spatial transformer, between cross-attention and feed-forward
    layer       after the whole layer

The middle block is ResBlock 0, transformer, ResBlock 1. It has the place `layer` once, before its last ResBlock, as in
AnimateDiff v2 and in diffusers, and the place `resnet` after each ResBlock.
"""

from dataclasses import dataclass
from typing import Literal

from .config import MotionConfig

Part = Literal["down", "mid", "up"]
Place = Literal["layer", "resnet", "attended"]
WORDS: dict[Place, str] = {"layer": "", "resnet": ", after its ResBlock", "attended": ", after its cross-attention"}


@dataclass(frozen=True, order=True)
class Slot:
    part: Part
    block: int
    """Counted in the order of execution: from the outermost block for "down", from the innermost for "up"."""
    layer: int
    place: Place = "layer"

    def __str__(self) -> str:
        if self.part == "mid":
            return "mid" + (f", after ResBlock {self.layer}" if self.place == "resnet" else WORDS[self.place])
        return f"{self.part} block {self.block}, layer {self.layer}{WORDS[self.place]}"


MIDDLE = Slot("mid", 0, 0)


def slots(config: MotionConfig) -> dict[Slot, int]:
    """Slot -> channels of a motion model, in the order of a forward pass."""
    channels, layers = config.block_channels, config.layers_per_block
    down = {Slot("down", i, j): c for i, c in enumerate(channels) for j in range(layers)}
    up = {Slot("up", i, j): c for i, c in enumerate(reversed(channels)) for j in range(layers + 1)}
    return down | ({MIDDLE: channels[-1]} if config.mid_block else {}) | up
