"""How much the error at a noise level counts."""

from torch import Tensor


def loss_weight(sigma: Tensor, boost: float) -> Tensor:
    """min(1, 5 sigma^2) * max(1, sigma)^boost: min-SNR-5 (Hang et al., arXiv 2303.09556), boosted at high noise.

    At high noise eps is almost the input, so errors of layout cost little eps error; `boost` gives them back their say.
    """
    return (5 * sigma**2).clamp(max=1) * sigma.clamp(min=1) ** boost
