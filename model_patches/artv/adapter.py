"""The reference adapter: a T2I-Adapter (Mou et al. 2023, arXiv:2302.08453) that reads the two previous frames.

Its input is both latents, concatenated to 8 channels, at the resolution of the U-Net; the PixelUnshuffle with which a
T2I-Adapter reads pixels is therefore not needed. Each stage halves the size by average pooling (`use_conv=False`) and
returns one feature map. A host adds it to the output of the last layer of that down block, before the output is stored
as a skip and before downsampling (ART-V, arXiv 2311.18834, section 3.2: the class, `nums_rb=2`, `ksize=1`, `sk=True`;
Table 2: 76.84 M and 3.08 M).

Shapes: n images, c channels, h height, w width of the latents.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class AdapterBlock(nn.Module):
    """x' + conv_1x1(relu(conv_3x3(x'))), where x' is x, or conv_1x1(x) if the number of channels changes."""

    def __init__(self, before: int, channels: int, ops: Any) -> None:
        super().__init__()
        self.in_conv = ops.Conv2d(before, channels, 1) if before != channels else None
        self.block1 = ops.Conv2d(channels, channels, 3, padding=1)
        self.block2 = ops.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (n, before, h, w) -> (n, channels, h, w)
        x = x if self.in_conv is None else self.in_conv(x)
        return x + self.block2(F.relu(self.block1(x)))


class ReferenceAdapter(nn.Module):
    """(n, channels_in, h, w) -> one feature map per stage, (n, channels[i], h / 2^i, w / 2^i), odd sizes rounded up.

    A new adapter returns zeros: its first convolution and all biases are initialised to zero (ours: a T2I-Adapter
    starts from random values). `blocks`: number of residual blocks per stage.
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
        """references: y^{i-1} and y^{i-2}, concatenated: (n, 2 c, h, w), in the latent space of the U-Net."""
        x = self.conv_in(references)
        features: list[Tensor] = []
        for number, block in enumerate(self.body):
            if number and number % self.blocks == 0:
                x = F.avg_pool2d(x, 2, ceil_mode=True)  # as the U-Net's convolutions of stride 2 do with odd sizes
            x = block(x)
            if (number + 1) % self.blocks == 0:
                features.append(x)
        return features
