"""DDIM through a host, with classifier-free or any guidance: pictures while training, and the clips of an ablation."""

from collections.abc import Callable

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t (b, f, 4, h, w), t (b,), context (b, 77, d) -> eps
Noise = Callable[[Tensor, int], Tensor]  # x_t, t -> eps, guided
Guide = Callable[[Tensor, Tensor, float], Tensor]  # predicted x_0, eps, sigma = sqrt((1 - abar) / abar) -> x_0
Begin = Callable[[int, Tensor], Tensor]  # number of the step, x_t -> what the step starts from


def timesteps(count: int, steps: int) -> list[int]:
    """Of `count` timesteps, those at which DDIM calls the model: evenly from the last one down, 0 left out."""
    return torch.linspace(count - 1, 0, steps + 1).round().long()[:-1].tolist()


@torch.no_grad()
def ddim(
    predict: Predict,
    noise: Tensor,  # (b, f, 4, h, w)
    context: Tensor,  # (b, 77, d), of the prompts
    empty: Tensor,  # like context, of the empty prompt
    alpha_bar: Tensor,  # (T,)
    *,
    steps: int,
    guidance: float,
    guide: Guide | None = None,  # moves the predicted x_0 of every step; eps follows
    begin: Begin | None = None,
) -> Tensor:
    """x_0 (b, f, 4, h, w) by `descend`, eps = eps_0 + guidance (eps_y - eps_0)."""
    both = torch.cat([empty, context])

    def guided(x: Tensor, t: int) -> Tensor:
        at = torch.full((len(both),), t, device=x.device)
        plain, told = predict(torch.cat([x, x]), at, both).chunk(2)
        return plain + guidance * (told - plain)

    return descend(guided, noise, alpha_bar, steps=steps, guide=guide, begin=begin)


@torch.no_grad()
def descend(
    predict: Noise,
    noise: Tensor,  # any shape
    alpha_bar: Tensor,  # (T,)
    *,
    steps: int,
    guide: Guide | None = None,
    begin: Begin | None = None,
    skip: int = 0,
) -> Tensor:
    """x_0, shaped like the noise. DDIM with eta = 0 (arXiv 2010.02502, Eq. 12).

    skip: of the steps; `noise` is then x_t of the first that is made.
    """
    x, times = noise, timesteps(len(alpha_bar), steps)[skip:]
    for k, (t, after) in enumerate(zip(times, [*times[1:], None], strict=True)):
        if begin is not None:
            x = begin(k, x)
        eps = predict(x, t)
        level = alpha_bar[t].item()
        x_0 = (x - (1 - level) ** 0.5 * eps) / level**0.5
        if guide is not None:
            x_0 = guide(x_0, eps, ((1 - level) / level) ** 0.5)
            eps = (x - level**0.5 * x_0) / (1 - level) ** 0.5
        level = 1.0 if after is None else alpha_bar[after].item()
        x = level**0.5 * x_0 + (1 - level) ** 0.5 * eps
    return x
