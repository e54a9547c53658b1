"""The anchor: one frame that all later ones look at, by a block behind each spatial transformer (section 3.4).

The paper says cross-attention. Everything else here is RECONSTRUCTED from the parameter counts of Table 2: what is left
in both networks is 18 d^2 + 153 d for each transformer of width d, that of one more transformer block (self-attention
4, cross-attention's query and output 2, GEGLU 12) whose keys and values come from tokens 68 wide. An anchor's latent in
4 x 4 patches gives 64; four numbers for a patch's place make 68. Tokens of CLIP (768 to 1280 wide) would not fit.

Shapes: n images, c channels, h height, w width, p = h w pixels, T tokens of the anchor, each k wide.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.spatial import Block


class AnchorBlock(Block):
    """The block of one place on feature maps. A fresh one is the identity, bit for bit: its three outputs are zero."""

    def __init__(self, channels: int, width: int, heads: int, **parts: Any) -> None:
        super().__init__(channels, width, heads, **parts)
        for module in (self.attn1.to_out, self.attn2.to_out, self.ff.net[2]):
            for parameter in module.parameters():  # none yet where a host's layers wait for their weights
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """(n, c, h, w), (n, T, k) -> (n, c, h, w)"""
        h, w = x.shape[-2:]
        z = x.flatten(2).transpose(1, 2).contiguous()
        z = super().forward(z, tokens.to(z))
        # contiguous: in another order of memory the next convolution adds up otherwise, and bits change
        return z.transpose(1, 2).unflatten(2, (h, w)).contiguous()


def patch_tokens(anchor: Tensor, patch: int, positions: bool) -> Tensor:
    """The anchor's latent as tokens: patches of `patch` x `patch`, row by row, and where each is (RECONSTRUCTED).

    anchor: (n, c, h, w) -> (n, T, c patch^2 [+ 4]), T = ceil(h / patch) ceil(w / patch). A size that the patches do not
    divide is filled up with zeros on the right and below. The place is sin and cos of pi times row and column, each
    counted from 0 to 1 at the centres of the patches, so that the size does not matter.
    """
    h, w = anchor.shape[-2:]
    filled = F.pad(anchor, (0, -w % patch, 0, -h % patch))
    tokens = F.pixel_unshuffle(filled, patch)  # (n, c patch^2, rows, columns)
    if positions:
        rows, columns = tokens.shape[-2:]
        place = _places(rows, columns).to(tokens).expand(len(tokens), -1, -1, -1)
        tokens = torch.cat([tokens, place], dim=1)
    return tokens.flatten(2).transpose(1, 2)


def _places(rows: int, columns: int) -> Tensor:
    """(4, rows, columns)."""
    y, x = (math.pi * (torch.arange(count) + 0.5) / count for count in (rows, columns))
    grid = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([f(axis) for axis in grid for f in (torch.sin, torch.cos)])
