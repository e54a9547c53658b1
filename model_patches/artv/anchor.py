"""The anchor: one frame that all later frames attend to, in a block after each spatial transformer (section 3.4).

The paper only says cross-attention. Everything else is RECONSTRUCTED from the parameter counts of Table 2: in both
networks 18 d^2 + 153 d parameters per transformer of width d remain unexplained. This is the size of one more
transformer block (self-attention 4, query and output of cross-attention 2, GEGLU 12) whose keys and values come from
tokens of width 68. A latent in 4 x 4 patches has 64 numbers per patch; four more for its position make 68. CLIP tokens
(768 to 1280 wide) would not fit.

Shapes: n images, c channels, h height, w width, p = h w pixels, T tokens of the anchor, each k wide.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.spatial import Block


class AnchorBlock(Block):
    """One anchor block on feature maps. A new block is the identity, bit for bit: its three outputs are zero."""

    def __init__(self, channels: int, width: int, heads: int, **parts: Any) -> None:
        super().__init__(channels, width, heads, **parts)
        for module in (self.attn1.to_out, self.attn2.to_out, self.ff.net[2]):
            for parameter in module.parameters():  # a host's layers may not have their weights yet
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, tokens: Tensor, options: Any = None) -> Tensor:  # type: ignore[override]
        """(n, c, h, w), (n, T, k) -> (n, c, h, w). options: passed to the host's attention."""
        h, w = x.shape[-2:]
        z = x.flatten(2).transpose(1, 2).contiguous()
        z = super().forward(z, tokens.to(z), options=options)
        # contiguous: with another memory layout the next convolution sums in another order, and the last bits differ
        return z.transpose(1, 2).unflatten(2, (h, w)).contiguous()


def patch_tokens(anchor: Tensor, patch: int, positions: bool) -> Tensor:
    """The anchor's latent as tokens: patches of `patch` x `patch`, row by row, with their positions (RECONSTRUCTED).

    anchor: (n, c, h, w) -> (n, T, c patch^2 [+ 4]), T = ceil(h / patch) ceil(w / patch). If the patch size does not
    divide the latent, zeros are added on the right and at the bottom. The position is the sine and cosine of pi times
    row and column of the patch centre, both scaled to 0..1, so it does not depend on the size of the latent.
    """
    h, w = anchor.shape[-2:]
    padded = F.pad(anchor, (0, -w % patch, 0, -h % patch))
    tokens = F.pixel_unshuffle(padded, patch)  # (n, c patch^2, rows, columns)
    if positions:
        rows, columns = tokens.shape[-2:]
        position = _positions(rows, columns).to(tokens).expand(len(tokens), -1, -1, -1)
        tokens = torch.cat([tokens, position], dim=1)
    return tokens.flatten(2).transpose(1, 2)


def _positions(rows: int, columns: int) -> Tensor:
    """(4, rows, columns)."""
    y, x = (math.pi * (torch.arange(count) + 0.5) / count for count in (rows, columns))
    grid = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([f(axis) for axis in grid for f in (torch.sin, torch.cos)])
