"""The loss of VidRD's temporal-aware decoder (arXiv 2309.03549, Eq. 9): L = 1 L_rec + 1e-5 L_reg + 0.5 L_disc.

The paper prints the weights and names the terms, which are those of latent diffusion's autoencoder (arXiv 2112.10752).
The terms are RECONSTRUCTED from that code: L1 and LPIPS for L_rec, the divergence of the latents from a normal
distribution for L_reg, a hinge loss of a patch discriminator with an adaptive weight and a late start for L_disc. If no
LPIPS weights are available, an L1 loss on the differences of neighbouring pixels replaces LPIPS, which is ours.

Shapes: f frames, images (f, 3, H, W) in -1..1.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REC, REG, DISC = 1.0, 1e-5, 0.5  # the text prints the second weight as "1^-5"
PERCEPTUAL = ("gradient", "lpips")
Perceptual = Callable[[Tensor, Tensor], Tensor]


def reconstruction(images: Tensor, targets: Tensor, perceptual: Perceptual) -> Tensor:
    """L_rec = mean |x - y| + P(x, y), P with weight 1 as in latent diffusion. Scalar."""
    return F.l1_loss(images, targets) + perceptual(images, targets)


def gradient_difference(images: Tensor, targets: Tensor) -> Tensor:
    """P without LPIPS: the sum over both directions of mean |dx - dy|, d between neighbouring pixels. Scalar."""
    return F.l1_loss(images.diff(dim=-1), targets.diff(dim=-1)) + F.l1_loss(images.diff(dim=-2), targets.diff(dim=-2))


def divergence(mean: Tensor, variance: Tensor) -> Tensor:
    """L_reg = mean of 1/2 (m^2 + v - 1 - ln v) over the latents; constant if the encoder is frozen. Scalar."""
    return 0.5 * (mean**2 + variance - 1 - variance.log()).mean()


def discriminator_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the discriminator: 1/2 (mean max(0, 1 - D(x)) + mean max(0, 1 + D(y))). Scores of any shape."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_hinge(fake: Tensor) -> Tensor:
    """L_disc of the decoder: -mean D(y)."""
    return -fake.mean()


def adaptive_weight(rec: Tensor, disc: Tensor, last: Tensor) -> Tensor:
    """|d rec / d last| / (|d disc / d last| + 1e-4), at most 1e4: it balances both gradients at the last layer.

    rec, disc: scalars that depend on `last`. The result has no gradient.
    """
    norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (rec, disc)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()


def started(step: int, start: int) -> float:
    """The factor on L_disc and on the discriminator's loss: 0 before step `start`, then 1."""
    return float(step >= start)


class PatchDiscriminator(nn.Module):
    """Scores of overlapping patches (Isola et al. 2017, arXiv:1611.07004): `layers` downsamplings, two convolutions.

    (f, 3, H, W) -> (f, 1, h, w). GroupNorm replaces the original's BatchNorm (ours), so that the scores of a frame do
    not depend on the rest of the batch.
    """

    def __init__(self, *, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = width
        for i in range(1, layers + 1):
            wider = width * min(2**i, 8)
            stride = 2 if i < layers else 1
            parts += [nn.Conv2d(channels, wider, 4, stride, 1, bias=False), nn.GroupNorm(1, wider), nn.LeakyReLU(0.2)]
            channels = wider
        self.net = nn.Sequential(*parts, nn.Conv2d(channels, 1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def frozen(self, images: Tensor) -> Tensor:
        """The same scores without a gradient for the discriminator's weights, for the decoder's loss."""
        weights: dict[str, Any] = {name: p.detach() for name, p in self.named_parameters()}
        return torch.func.functional_call(self, weights, (images,))
