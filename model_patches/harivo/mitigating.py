"""Mitigating-gradient sampling: at every step the predicted frames are moved towards their neighbours.

Source: "HARIVO: Harnessing Text-to-Image Models for Video Generation", arXiv 2410.07763, Eq. 6 and 7, Algorithm 1.
The paper states: a kernel similarity of consecutive frames of the predicted x_0, whose gradient is added to the noise
prediction as in ADM's guidance with a scale alpha; it is strongest near noise because of sqrt(1 - abar); a variance
from the median and a logarithm; a closed form at negligible cost; alpha = 40 (40 to 50; about 200 pauses or distorts).
RECONSTRUCTED, because the formulas themselves could not be read, and therefore options:

    kernel     "rbf": the sum of the kernels, as in Particle Guidance with the opposite sign; the most likely reading.
               "log": their mean logarithm, linear in the difference; best at repairing one abrupt pair.
               "logsum": the logarithm of their sum, which is rbf with pair weights normalised to sum to one.
    bandwidth  "median_log": the median heuristic of SVGD (arXiv 1608.04471), h = median(d)^2 / ln F. The gradient
               treats the median as a constant: its derivative would act on a single pair and smooth nothing.
               "fixed": one variance per element for every step; frames that already agree are then hardly moved.
    jacobian   "plain": the gradient is taken at x_0. "exact": at x_t, with eps held fixed. "exact" is stronger by
               1 / sqrt(abar) and overshoots at alpha = 40, so "plain" fits the alpha of the paper.

Not in the paper: the cap on the change of eps and the compensation for latent size and frame count (see `Config`).

Shapes: v videos, f frames, c channels, h height, w width, n = c h w elements of a frame. In the text F is the number of
frames, D = n, e_f = x_0^(f+1) - x_0^f, d_f = ||e_f||, q_f = d_f^2 / D (the mean square, safe in any precision).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["rbf", "log", "logsum"]
Bandwidth = Literal["median_log", "fixed"]
Jacobian = Literal["plain", "exact"]
KERNELS: tuple[Kernel, ...] = ("rbf", "log", "logsum")
BANDWIDTHS: tuple[Bandwidth, ...] = ("median_log", "fixed")
JACOBIANS: tuple[Jacobian, ...] = ("plain", "exact")

SMALLEST_BANDWIDTH = 1e-8  # per element; frames closer than this are the same frame
# The noisiest level of AnimateDiff's betas. Flow models and zero-terminal-SNR schedules start far above it (at
# infinity), which the paper does not cover and where the step to the next level would amplify the change without bound.
LARGEST_SIGMA = 25.15


@dataclass(frozen=True, kw_only=True)
class Config:
    """How strongly and by what rule frames are moved together. All choices but `alpha` are reconstructed (see above).

    alpha: the scale; 40 in the paper.
    variance: sigma_k^2 of one element for bandwidth="fixed", in latent units (a latent of SD has variance about 1).
    max_eps_ratio: the largest ||eps' - eps|| / ||eps|| of a video, 0 for no cap. alpha = 40 stays below 0.3; the
        default prevents an alpha of 150 or more from destroying the clip. Set it to 0 for the behaviour of the paper.
    compensate_size: multiply alpha by D / reference_elements. The force decreases as 1 / D, so without this 40 is four
        times weaker for a latent of twice the width and height. The paper's 40 is for 256 x 256 pixels: 4 x 32 x 32.
    compensate_frames: give alpha the same meaning for every F. The paper's 40 is for 24 frames.

    Raises ValueError for an unknown name or a number out of range.
    """

    alpha: float = 40.0
    kernel: Kernel = "rbf"
    bandwidth: Bandwidth = "median_log"
    jacobian: Jacobian = "plain"
    variance: float = 0.05
    max_eps_ratio: float = 0.5
    compensate_size: bool = True
    reference_elements: int = 4096
    compensate_frames: bool = True
    reference_frames: int = 24

    def __post_init__(self) -> None:
        for name, choices in (("kernel", KERNELS), ("bandwidth", BANDWIDTHS), ("jacobian", JACOBIANS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"mitigating gradient: {name} is {getattr(self, name)!r}; use one of {', '.join(choices)}"
                )
        for name, least in (("alpha", 0), ("max_eps_ratio", 0), ("reference_elements", 1), ("reference_frames", 2)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"mitigating gradient: {name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.variance < math.inf:
            raise ValueError(f"mitigating gradient: variance is {self.variance}; it must be above 0")


@dataclass(frozen=True)
class Effect:
    """The effect of one application: means over the videos, tensors of shape (), on the latents' device."""

    alpha: Tensor  # after compensation and cap
    eps_ratio: Tensor  # ||eps' - eps|| / ||eps||
    before: Tensor  # mean over the pairs of the root mean square difference of adjacent frames of x_0
    after: Tensor


def fold(latent: Tensor, frames: int | None) -> Tensor:
    """(v f, c, h, w) with `frames`, or (v, c, f, h, w), which has a frame axis -> (v, f, n).

    Raises ValueError when `frames` does not divide the batch, or the latent has another number of axes.
    """
    if latent.ndim == 5:
        return latent.transpose(1, 2).flatten(2)
    if latent.ndim != 4:
        raise ValueError(f"mitigating gradient: the latent has {latent.ndim} axes; it must have 4 or 5")
    if not frames or frames < 0 or latent.shape[0] % frames:
        raise ValueError(
            f"mitigating gradient: a batch of {latent.shape[0]} latents cannot be divided into videos of {frames} "
            "frames; set frames to a divisor of the batch size"
        )
    return latent.unflatten(0, (-1, frames)).flatten(2)


def unfold(clips: Tensor, like: Tensor) -> Tensor:
    """The inverse of `fold`: (v, f, n) -> the shape and dtype of `like`."""
    if like.ndim == 4:
        return clips.reshape(like.shape).to(like.dtype)
    v, c, f, h, w = like.shape
    return clips.reshape(v, f, c, h, w).transpose(1, 2).to(like.dtype)


def mean_squares(steps: Tensor) -> Tensor:
    """q_f = d_f^2 / D. steps: (v, f - 1, n), the e_f -> (v, f - 1)."""
    return steps.square().mean(-1)


def adjacent_difference(squares: Tensor) -> Tensor:
    """The value in the readout: the mean of sqrt(q_f) over videos and pairs. (v, f - 1) -> ()."""
    return squares.sqrt().mean()


def bandwidth(squares: Tensor, config: Config) -> Tensor:
    """h / D, where K = exp(-d^2 / h) and h = 2 sigma_k^2. squares: (v, f - 1) -> (v, 1).

    median_log: h = median_f(d_f^2) / ln F, so that the median pair has K = 1 / F (lower median for an even number).
    fixed: h = 2 variance D.
    """
    if config.bandwidth == "fixed":
        return torch.full_like(squares[:, :1], 2 * config.variance)
    median = squares.detach().median(dim=1, keepdim=True).values
    return (median / math.log(squares.shape[1] + 1)).clamp(min=SMALLEST_BANDWIDTH)


def pair_weights(squares: Tensor, h: Tensor, kernel: Kernel) -> Tensor:
    """w_f in dG/de_f = -(2 / h) w_f e_f. squares: (v, f - 1), h: (v, 1), per element -> (v, f - 1).

    rbf: G = sum_f K_f, w = K. log: G = mean_f ln K_f, w = 1 / (F - 1). logsum: G = ln sum_f K_f, w = K / sum K.
    """
    exponent = -squares / h
    if kernel == "rbf":
        return exponent.exp()
    if kernel == "logsum":
        return exponent.softmax(dim=1)
    return torch.full_like(squares, 1 / squares.shape[1])


def similarity_gradient(steps: Tensor, squares: Tensor, config: Config) -> Tensor:
    """g = dG/dx_0, closed form: g_f = p_f - p_(f-1), p_f = (2 / h) w_f e_f, p_0 = p_F = 0.

    steps: (v, f - 1, n), squares: (v, f - 1) -> (v, f, n). The sum over frames is zero, so the mean frame stays.
    """
    h = bandwidth(squares, config)
    force = (2 / (h * steps.shape[-1]) * pair_weights(squares, h, config.kernel)).unsqueeze(-1) * steps
    g = force.new_zeros(force.shape[0], force.shape[1] + 1, force.shape[2])
    g[:, :-1] = force
    g[:, 1:] -= force
    return g


def effective_alpha(config: Config, *, frames: int, elements: int) -> float:
    """alpha after the compensations, with which a pair's force is the same for every size and frame count.

    For F frames the force of the median pair is K / h ~ (1 / F) ln F with the rbf kernel and (1 / (F - 1)) ln F with
    the log kernels; with a fixed bandwidth there is no ln F, and rbf does not depend on F at all.
    """
    alpha = config.alpha
    if config.compensate_size:
        alpha *= elements / config.reference_elements
    if not config.compensate_frames:
        return alpha
    if config.bandwidth == "median_log":
        alpha *= math.log(config.reference_frames) / math.log(frames)
    if config.kernel != "rbf":
        return alpha * (frames - 1) / (config.reference_frames - 1)
    return alpha * frames / config.reference_frames if config.bandwidth == "median_log" else alpha


def level_scale(sigma: float, jacobian: Jacobian) -> float:
    """s(sigma) in x_0' = x_0 + alpha s g, from eps' = eps - alpha sqrt(1 - abar) dG and x_0 = x - sigma eps.

    plain (dG at x_0): sigma sqrt(1 - abar) = sigma^2 / sqrt(1 + sigma^2).
    exact (dG at x_t, 1 / sqrt(abar) larger): sigma^2. Above LARGEST_SIGMA the scale is constant.
    """
    sigma = min(sigma, LARGEST_SIGMA)
    return sigma**2 if jacobian == "exact" else sigma**2 / math.sqrt(1 + sigma**2)


def eps_ratio(change: Tensor, eps: Tensor, sigma: float) -> Tensor:
    """||eps' - eps|| / ||eps||, with eps' - eps = -change / min(sigma, LARGEST_SIGMA). Two (v, f, n) -> (v,)."""
    norm = eps.square().sum((1, 2)).sqrt() * min(sigma, LARGEST_SIGMA)
    return change.square().sum((1, 2)).sqrt() / norm.clamp(min=torch.finfo(norm.dtype).tiny)


def mitigate(
    x0: Tensor,  # (v f, c, h, w) or (v, c, f, h, w), predicted, any floating dtype
    eps: Tensor,  # as x0, the noise of the same prediction
    sigma: float,  # VE, see core/levels.py
    config: Config,
    *,
    frames: int | None = None,  # of one video; not needed for a latent of five axes
) -> tuple[Tensor, Effect]:
    """x_0' = x_0 + alpha s(sigma) g(x_0), with the shape and dtype of x_0, and the effect of the change.

    Computed in float32 (float64 stays float64). The videos of a batch are independent. With alpha = 0, sigma = 0 or
    one frame the result is `x0` itself. Errors as in `fold`.
    """
    clips = _wide(fold(x0, frames))
    v, f, n = clips.shape
    steps = clips.diff(dim=1)
    squares = mean_squares(steps)
    before = adjacent_difference(squares) if f > 1 else clips.new_zeros(())
    zero = clips.new_zeros(())
    if f == 1 or config.alpha == 0 or sigma <= 0:
        return x0, Effect(zero, zero, before, before)
    alpha = effective_alpha(config, frames=f, elements=n)
    change = alpha * level_scale(sigma, config.jacobian) * similarity_gradient(steps, squares, config)
    ratio = eps_ratio(change, _wide(fold(eps, frames)), sigma)
    if config.max_eps_ratio:
        cap = (config.max_eps_ratio / ratio.clamp(min=config.max_eps_ratio)).view(v, 1, 1)
        change, ratio, alpha = change * cap, ratio * cap.flatten(), alpha * cap.mean()
    result = clips + change
    after = adjacent_difference(mean_squares(result.diff(dim=1)))
    return unfold(result, x0), Effect(zero + alpha, ratio.mean(), before, after)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
