"""SparseCtrl: images on some frames of a clip (Guo et al. 2023, arXiv:2311.16933, section 3.2 and figure 3).

    h_i = conv_in(0) + conv_s([c_i, m_i]),    r = the residuals of a ControlNet with temporal layers on h

c_i is the hint of frame i, zero where it has none, and m_i a mask that is 1 where it has one. The noisy latent is not
an input, because the network would otherwise ignore frames without a hint. Temporal layers (those of AnimateDiff, with
one attention each) carry the hints to the other frames. The residuals are added to the skips and the middle block of
the U-Net.

Shapes: n = b f images of b clips with f frames, c channels, h height, w width of the latents.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..core.control import ControlBranch, HintEncoder, Residuals, zero
from ..core.slots import Slot, slots
from ..core.temporal import Attention, MotionModule, sdpa
from .config import LATENT, SparseConfig


class _Block(nn.Module):
    """Adds the level `motion_modules` to the keys, as in AnimateDiff's files."""

    def __init__(self, modules: list[MotionModule]) -> None:
        super().__init__()
        self.motion_modules = nn.ModuleList(modules)


class DownMotion(nn.Module):
    """AnimateDiff's temporal modules after the layers of the down blocks."""

    def __init__(self, config: SparseConfig, ops: Any, attention: Attention) -> None:
        super().__init__()
        motion = config.motion()
        self.places = {slot: channels for slot, channels in slots(motion).items() if slot.part == "down"}
        rules: dict[str, Any] = {
            "heads": motion.heads,
            "max_frames": motion.max_frames,
            "attentions": config.attentions,
        }
        blocks: list[list[MotionModule]] = [[] for _ in config.block_channels]
        for slot, channels in self.places.items():
            blocks[slot.block].append(MotionModule(channels, ops=ops, attention=attention, **rules))
        self.down_blocks = nn.ModuleList(_Block(modules) for modules in blocks)

    def modules_by_slot(self) -> dict[Slot, Any]:
        """Slot -> module, in the order of a forward pass."""
        blocks: Any = self.down_blocks
        return {slot: blocks[slot.block].motion_modules[slot.layer] for slot in self.places}


class SparseControl(ControlBranch):
    """The network. Its weights have AnimateDiff's names, with the temporal modules below `temporal`."""

    def __init__(self, config: SparseConfig, *, ops: Any = nn, attention: Attention = sdpa) -> None:
        first = config.block_channels[0]

        def encoder(ops: Any) -> nn.Module:
            if config.hint == LATENT:
                return zero(ops.Conv2d(config.inputs, first, 3, padding=1))
            return HintEncoder(config.hint_channels, first, ops, inputs=config.inputs)

        temporal = DownMotion(config, ops, attention)
        super().__init__(config, encoder, temporal=temporal, ops=ops, attention=attention)
        self.config = config

    def encode(self, hints: Tensor, mask: Tensor) -> Tensor:
        """conv_s([c, m]). hints: (n, 4, h, w), the scaled latents of images, or (n, 3, s h, s w), pixels from 0 to 1;
        mask: (n, 1, ., .) of the same size -> (n, c, h, w). Both are zero for frames without an image."""
        return self.controlnet_cond_embedding(torch.cat((hints, mask), dim=1))

    def forward(self, t: Tensor, context: Tensor, z: Tensor, frames: int) -> Residuals:
        """t: timesteps (n,); context: (n, L, d); z: `encode` of the hints of all n frames, (n, c, h, w). frames: of a
        clip. ValueError unless n is whole clips that fit the positional table."""
        blank = z.new_zeros(len(z), 4, *z.shape[2:])
        return self.residuals(self.conv_in(blank) + z, t, context, frames)
