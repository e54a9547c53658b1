"""All parts of ART-V except the frozen image U-Net (arXiv 2311.18834, section 3.2 to 3.4, Table 2).

With the sizes of Stable Diffusion 2.1 the dynamic network has 1167.69 M parameters, including 865.91 M of the image
model, the mask network 51.18 M, and their adapters 76.84 M and 3.08 M, as in Table 2.
"""

from typing import Any

from torch import nn

from ..core.temporal import Attention, sdpa
from .adapter import ReferenceAdapter
from .config import ArtvConfig
from .mask_unet import MaskUNet
from .places import AnchorBlocks


class ArtvModel(nn.Module):
    """The adapter and the anchor blocks of the dynamic network, and the whole mask network. Its state dict is the file.

    It has no forward method: a host adds the adapter's features and calls the anchor blocks inside its own U-Net, and
    blends the result with the mask.
    """

    def __init__(self, config: ArtvConfig, *, ops: Any = nn, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        self.reference = ReferenceAdapter(
            config.block_channels, 2 * config.latent_channels, config.adapter_blocks, ops=ops
        )
        self.anchors = AnchorBlocks(config, config.block_channels, config.heads, ops=ops, attention=attention)
        self.mask = MaskUNet(config, ops=ops, attention=attention)
