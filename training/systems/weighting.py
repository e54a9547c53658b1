"""Loss weights of noise levels."""

from torch import Tensor


def loss_weight(sigma: Tensor, boost: float) -> Tensor:
    """min(1, 5 sigma^2) * max(1, sigma)^boost: min-SNR-5 (Hang et al., arXiv 2303.09556), boosted at high noise.

    At high noise, eps is almost equal to the input, so errors of the layout cause only small errors of eps; `boost`
    increases their weight.
    """
    return (5 * sigma**2).clamp(max=1) * sigma.clamp(min=1) ** boost
