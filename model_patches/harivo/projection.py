"""HARIVO's projection head g: features of a frame -> the vector that the contrastive loss compares. Training only.

Source: arXiv 2410.07763, section 3.4 and appendix: an MLP with the widths (c h w), c, c, c on the U-Net's middle
features. The SiLU between the layers is RECONSTRUCTED. The head works for one latent size only, that of the training,
and is not saved in model files.
"""

import math

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Linear(c h w -> c), SiLU, Linear(c -> c), SiLU, Linear(c -> c). `features` is (c, h, w) of the middle block."""

    def __init__(self, features: tuple[int, int, int], channels: int | None = None) -> None:
        super().__init__()
        self.features = tuple(features)
        c = channels or features[0]
        self.layers = nn.Sequential(
            nn.Linear(math.prod(features), c), nn.SiLU(), nn.Linear(c, c), nn.SiLU(), nn.Linear(c, c)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, c, h, w) -> (b, c). ValueError for features of another size."""
        if tuple(x.shape[1:]) != self.features:
            raise ValueError(
                f"projection head: it was built for middle features of size {self.features} (c, h, w), but these are "
                f"{tuple(x.shape[1:])}; train at one latent size, or build the head for this one"
            )
        return self.layers(x.flatten(1))
