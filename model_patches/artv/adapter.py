"""The reference adapter: a T2I-Adapter (Mou et al. 2023, arXiv:2302.08453) that reads the two frames before.

Its input are both latents behind each other, 8 channels, at the U-Net's own size; so the PixelUnshuffle, by which a
T2I-Adapter reads pixels, falls away. Each stage halves the size by averages (`use_conv=False`) and gives one feature,
which a host adds behind the last layer of that down block, before it is stored as a skip and before downsampling
(ART-V, arXiv 2311.18834, section 3.2: the class, `nums_rb=2`, `ksize=1`, `sk=True`; Table 2: 76.84 M and 3.08 M).

Shapes: n images, c channels, h height, w width of the latents.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class AdapterBlock(nn.Module):
    """x' = conv_1x1 of its input where the channels change; then x' + conv_1x1(relu(conv_3x3(x')))."""

    def __init__(self, before: int, channels: int, ops: Any) -> None:
        super().__init__()
        self.in_conv = ops.Conv2d(before, channels, 1) if before != channels else None
        self.block1 = ops.Conv2d(channels, channels, 3, padding=1)
        self.block2 = ops.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (n, before, h, w) -> (n, channels, h, w)
        x = x if self.in_conv is None else self.in_conv(x)
        return x + self.block2(F.relu(self.block1(x)))


class ReferenceAdapter(nn.Module):
    """(n, channels_in, h, w) -> a feature per stage, (n, channels[i], h / 2^i, w / 2^i), odd sizes rounded up.

    A fresh one gives zeros: its first convolution is zero, and so are all its offsets (ours: T2I-Adapter begins with
    random ones). `blocks`: residual blocks in a stage.
    """

    def __init__(self, channels: tuple[int, ...], channels_in: int, blocks: int = 2, *, ops: Any = nn) -> None:
        super().__init__()
        self.blocks = blocks
        self.conv_in = ops.Conv2d(channels_in, channels[0], 3, padding=1)
        self.body = nn.ModuleList()
        before = channels[0]
        for width in channels:
            for _ in range(blocks):
                self.body.append(AdapterBlock(before, width, ops))
                before = width
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or name == "conv_in.weight":
                nn.init.zeros_(parameter)

    def forward(self, references: Tensor) -> list[Tensor]:
        """references: y^{i-1} and y^{i-2} behind each other, (n, 2 c, h, w), in the latent space of the U-Net."""
        x = self.conv_in(references)
        features: list[Tensor] = []
        for number, block in enumerate(self.body):
            if number and number % self.blocks == 0:
                x = F.avg_pool2d(x, 2, ceil_mode=True)  # as the U-Net's convolutions of stride 2 do with odd sizes
            x = block(x)
            if (number + 1) % self.blocks == 0:
                features.append(x)
        return features
