"""HARIVO's mapping network: it maps independent noise of the frames to noise from which an image model makes a video.

Source: arXiv 2410.07763, section 3.2 and figure 3. Stated: the network M precedes the image U-Net, is called at every
step, and consists of a 3D convolution over (f, h, w), temporal attention and a linear layer; with M, the image model
still generates nearly the same images (figure A1: the deviation stays the same, the mean shifts little).
RECONSTRUCTED: the sizes, and that M is a residual whose last layer is initialised to zero,

    M(x) = x + W (z + TA(LayerNorm(z))),   z = Conv3d(x),

so that training starts exactly from the image model, as figure A1 suggests.

Shapes: b clips, f frames, c channels, h height, w width. x is the input of the U-Net: the noisy latent in VP
coordinates, x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, as (b f, c, h, w), the frames of a clip one after another.
"""

from typing import Any

from torch import Tensor, nn

from ..core.temporal import Attention, FrameAttention, check_frames, sdpa
from .config import MappingConfig


class MappingNetwork(nn.Module):
    """x + update(x). A new network is the identity, bit for bit. `ops` and `attention` as in `core.temporal`."""

    def __init__(self, config: MappingConfig, *, ops: Any = nn, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        self.conv = ops.Conv3d(config.channels, config.width, 3, padding=1)
        self.norm = ops.LayerNorm(config.width)
        self.attention = FrameAttention(config.width, config.heads, config.max_frames, ops, attention)
        self.proj_out = ops.Linear(config.width, config.channels)
        for parameter in self.proj_out.parameters():  # a host's layers may not have their weights yet
            nn.init.zeros_(parameter)

    def update(self, x: Tensor, frames: int, options: Any = None) -> Tensor:
        """The residual for x. x: (b f, c, h, w) -> same. options: passed to the host's attention.

        ValueError when the batch is not whole clips, a clip is longer than the table, or the channels do not match.
        """
        check_frames(x.shape[0], frames, self.config.max_frames)
        if x.shape[1] != self.config.channels:
            raise ValueError(
                f"mapping network: it was built for latents with {self.config.channels} channels, but these have "
                f"{x.shape[1]}; load the base model that it was trained on"
            )
        z = self.conv(x.unflatten(0, (-1, frames)).transpose(1, 2).contiguous())  # (b, width, f, h, w)
        b, _, _, h, w = z.shape
        tokens = z.permute(0, 3, 4, 2, 1).flatten(0, 2).contiguous()  # (b h w, f, width)
        output = self.proj_out(tokens + self.attention(self.norm(tokens), options))  # (b h w, f, c)
        return output.unflatten(0, (b, h, w)).permute(0, 3, 4, 1, 2).flatten(0, 1)

    def forward(self, x: Tensor, frames: int) -> Tensor:  # (b f, c, h, w) -> same
        return x + self.update(x, frames)
