"""DDIM sampling with classifier-free or other guidance, for previews during training and the clips of an ablation."""

from collections.abc import Callable

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t (b, f, 4, h, w), t (b,), context (b, 77, d) -> eps
Noise = Callable[[Tensor, int], Tensor]  # x_t, t -> guided eps
Guide = Callable[[Tensor, Tensor, float], Tensor]  # predicted x_0, eps, sigma = sqrt((1 - abar) / abar) -> new x_0
BeforeStep = Callable[[int, Tensor], Tensor]  # number of the step, x_t -> the x_t that the step uses


def timesteps(count: int, steps: int) -> list[int]:
    """The timesteps (out of `count`) at which DDIM calls the model: evenly spaced, in descending order, without 0."""
    return torch.linspace(count - 1, 0, steps + 1).round().long()[:-1].tolist()


@torch.no_grad()
def ddim(
    predict: Predict,
    noise: Tensor,  # (b, f, 4, h, w)
    context: Tensor,  # (b, 77, d), embeddings of the prompts
    empty: Tensor,  # like context, embedding of the empty prompt
    alpha_bar: Tensor,  # (T,)
    *,
    steps: int,
    guidance: float,
    guide: Guide | None = None,  # changes the predicted x_0 of every step; eps is recomputed from it
    before_step: BeforeStep | None = None,
) -> Tensor:
    """x_0 (b, f, 4, h, w) by `descend`, with eps = eps_0 + guidance (eps_y - eps_0)."""
    contexts = torch.cat([empty, context])

    def guided_eps(x: Tensor, t: int) -> Tensor:
        times = torch.full((len(contexts),), t, device=x.device)
        eps_uncond, eps_cond = predict(torch.cat([x, x]), times, contexts).chunk(2)
        return eps_uncond + guidance * (eps_cond - eps_uncond)

    return descend(guided_eps, noise, alpha_bar, steps=steps, guide=guide, before_step=before_step)


@torch.no_grad()
def descend(
    predict: Noise,
    noise: Tensor,  # any shape
    alpha_bar: Tensor,  # (T,)
    *,
    steps: int,
    guide: Guide | None = None,
    before_step: BeforeStep | None = None,
    skip: int = 0,
) -> Tensor:
    """x_0, with the shape of the noise. DDIM with eta = 0 (arXiv 2010.02502, Eq. 12).

    skip: number of steps to leave out at the start; `noise` is then x_t of the first remaining step.
    """
    x, times = noise, timesteps(len(alpha_bar), steps)[skip:]
    for k, (t, t_next) in enumerate(zip(times, [*times[1:], None], strict=True)):
        if before_step is not None:
            x = before_step(k, x)
        eps = predict(x, t)
        level = alpha_bar[t].item()
        x_0 = (x - (1 - level) ** 0.5 * eps) / level**0.5
        if guide is not None:
            x_0 = guide(x_0, eps, ((1 - level) / level) ** 0.5)
            eps = (x - level**0.5 * x_0) / (1 - level) ** 0.5
        level = 1.0 if t_next is None else alpha_bar[t_next].item()
        x = level**0.5 * x_0 + (1 - level) ** 0.5 * eps
    return x
