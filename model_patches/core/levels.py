"""Noise levels: conversions between the three conventions of hosts and papers, and the noise schedules.

A noisy latent is written in one of three coordinate systems, all with the same x_0 and noise eps:

    VP    x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps     papers, diffusers; abar is the product of (1 - beta) up to t
    VE    x   = x_0 + sigma eps                         k-diffusion and ComfyUI's samplers; x = x_t / sqrt(abar)
    flow  x_s = (1 - s) x_0 + s eps                     rectified flow; x = x_s / (1 - s)

so that sigma = sqrt((1 - abar) / abar) = s / (1 - s). Names: abar is alpha_bar, s is the flow time in [0, 1].
"""

from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["scaled_linear", "linear"]
SCHEDULES: tuple[Schedule, ...] = ("scaled_linear", "linear")

# Of Stable Diffusion 1.x and 2.x (latent-diffusion's "linear" is the square of a straight line; diffusers calls it
# scaled_linear), and of AnimateDiff, which is trained with a straight line between the same ends.
BETA_START = 0.00085
BETA_END = 0.012
TIMESTEPS = 1000


def alpha_bar_from_sigma(sigma: Tensor) -> Tensor:
    """VE -> VP: abar = 1 / (1 + sigma^2)."""
    return 1 / (1 + sigma**2)


def sigma_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """VP -> VE: sigma = sqrt((1 - abar) / abar); infinite at abar = 0."""
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def sigma_from_flow(time: Tensor) -> Tensor:
    """Flow -> VE: sigma = s / (1 - s); infinite at s = 1."""
    return time / (1 - time)


def flow_from_sigma(sigma: Tensor) -> Tensor:
    """VE -> flow: s = sigma / (1 + sigma)."""
    return sigma / (1 + sigma)


def betas(
    schedule: str = "scaled_linear", start: float = BETA_START, end: float = BETA_END, steps: int = TIMESTEPS
) -> Tensor:
    """The forward variances beta_t, float64, (steps,).

    linear: a straight line from start to end. scaled_linear: the square of the straight line between their roots.
    The largest sigma is 14.6 for scaled_linear and 25.1 for linear, with the default ends.

    Raises ValueError when the schedule is unknown or the ends are not 0 < start <= end < 1.
    """
    if not 0 < start <= end < 1:
        raise ValueError(f"betas: need 0 < start <= end < 1, got start={start}, end={end}")
    if schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    raise ValueError(f"betas: unknown schedule {schedule!r}; known are {', '.join(SCHEDULES)}")


def alpha_bars(
    schedule: str = "scaled_linear", start: float = BETA_START, end: float = BETA_END, steps: int = TIMESTEPS
) -> Tensor:
    """abar_t = prod_{s <= t} (1 - beta_s), float64, (steps,), falling. Errors as in `betas`."""
    return (1 - betas(schedule, start, end, steps)).cumprod(0)


def sigmas(
    schedule: str = "scaled_linear", start: float = BETA_START, end: float = BETA_END, steps: int = TIMESTEPS
) -> Tensor:
    """sigma_t of every timestep, float64, (steps,), rising: the table of ComfyUI's ModelSamplingDiscrete."""
    return sigma_from_alpha_bar(alpha_bars(schedule, start, end, steps))
