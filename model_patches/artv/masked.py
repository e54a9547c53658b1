"""Masked diffusion: where nothing moves, the previous frame is copied (ART-V, arXiv 2311.18834, Eq. 6 and 7).

The noise estimate blends a static part, which follows from the previous frame, with that of the dynamic network:

    eps^ = m static + (1 - m) eps_dyn,    m in [0, 1] from the mask network, one number per latent pixel

Names in this file: abar is alpha_bar, s = sigma = sqrt((1 - abar) / abar), y_t is the noisy latent in VP coordinates,
x = y_t / sqrt(abar) the same in k-diffusion's coordinates, y_ref the previous frame. (In the paper, sigma is
sqrt(abar).)

Eq. 6 splits the noise exactly, but its static part contains the frame that is still to be generated. The text describes
the implementation as y_ref - y_t, which has the opposite sign of a noise estimate and a scale that fits no level. The
default is the estimate for which m = 1 predicts y_ref, RECONSTRUCTED:

    consistent    (y_t - sqrt(abar) y_ref) / sqrt(1 - abar),    which makes Eq. 7  x_0 = m y_ref + (1 - m) x_0,dyn
    paper         y_ref - y_t
    reversed      y_t - y_ref

Shapes: n images; m is (n, 1, h, w), everything else (n, c, h, w), abar and s broadcast against it.
"""

from torch import Tensor

from ..core.levels import alpha_bar_from_sigma


def static_noise(y_t: Tensor, y_ref: Tensor, alpha_bar: Tensor, form: str = "consistent") -> Tensor:
    """The static part of Eq. 6 as a noise estimate. alpha_bar < 1 for "consistent"; ValueError for an unknown form."""
    if form == "paper":
        return y_ref - y_t
    if form == "reversed":
        return y_t - y_ref
    if form != "consistent":
        raise ValueError(f"masked diffusion: the static part is {form!r}; choose consistent, paper or reversed")
    return (y_t - alpha_bar.sqrt() * y_ref) / (1 - alpha_bar).sqrt()


def masked_noise(eps: Tensor, static: Tensor, m: Tensor) -> Tensor:
    """Eq. 7: m static + (1 - m) eps."""
    return m * static + (1 - m) * eps


def masked_prediction(
    x_0: Tensor, x: Tensor, y_ref: Tensor, sigma: Tensor, m: Tensor, form: str = "consistent"
) -> Tensor:
    """Eq. 7 for predictions of the clean latent, which ComfyUI's samplers use whatever the network predicts.

    x_0: the dynamic network's, x: the noisy latent, x = x_0 + s eps, in k-diffusion's coordinates.
    """
    if form == "consistent":
        return m * y_ref + (1 - m) * x_0
    alpha_bar = alpha_bar_from_sigma(sigma)
    static = static_noise(x * alpha_bar.sqrt(), y_ref, alpha_bar, form)
    return x - sigma * masked_noise((x - x_0) / sigma, static, m)


def noise_from_velocity(v: Tensor, y_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """eps of a network that predicts v = sqrt(abar) eps - sqrt(1 - abar) x_0 (arXiv 2202.00512)."""
    return alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * y_t
