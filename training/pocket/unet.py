"""Stage 3: the U-Net (diffusers' UNet2DConditionModel; eps-prediction on Stable Diffusion's betas).

A deliberate difference from Stable Diffusion: a share of the samples is noised with the *linear* betas at the same
timestep numbers, because motion models are trained and sampled with those (AnimateDiff, HARIVO App. D). The U-Net thus
learns their pairs of timestep and noise level as well, and noise up to sigma 25.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...model_patches.core.levels import alpha_bars
from ...model_patches.diffusers_host.pocket import new_unet
from ...model_patches.pocket import PocketConfig
from ..data.latents import Latents
from ..engine.loop import sample_generator
from ..engine.task import Task
from ..systems.weighting import loss_weight
from .text import Vocabulary

LINEAR_SHARE = 0.25
ANY_FRAME = 0.2  # share of samples whose frame may show nothing of the subject
DROP = 0.1  # share of empty captions, for classifier-free guidance


class UnetTask(Task):
    """eps MSE on single frames of the cached clips."""

    def __init__(self, text, vocabulary: Vocabulary, latents: Latents, seed: int = 0, *, boost: float = 0.5) -> None:
        super().__init__()
        self.unet = new_unet(PocketConfig())
        self.text = text.eval().requires_grad_(False)
        self.vocabulary, self.latents, self.seed, self.boost = vocabulary, latents, seed, boost
        self.tables = tables()

    def captions(self, samples: list[int]) -> list[str]:
        return captions(self.latents, self.seed, samples)

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        device = next(self.unet.parameters()).device
        x0, noise, t, alpha_bar = noised_frames(self.latents, self.tables, self.seed, samples)
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        with torch.no_grad():
            context = self.text(self.vocabulary.rows(self.captions(samples)).to(device)).last_hidden_state
        eps = self.unet(x_t.to(device), t.to(device), context).sample
        error = (eps - noise.to(device)).square().mean((1, 2, 3))
        weight = loss_weight(((1 - alpha_bar) / alpha_bar).sqrt().flatten(), self.boost).to(device)
        return {"loss": (weight * error).mean(), "eps": error.mean().detach()}


def tables() -> Tensor:
    """alpha_bar of all timesteps for both beta schedules: (2, 1000), the image model's own schedule first."""
    return torch.stack([alpha_bars("scaled_linear").float(), alpha_bars("linear").float()])


def captions(latents: Latents, seed: int, samples: list[int]) -> list[str]:
    """A wording of each sample's caption, or "" with probability `DROP`."""
    return [latents.wording(k % len(latents.values), f"unet/{seed}/{k}", DROP) for k in samples]


def place(latents: Latents, seed: int, k: int) -> tuple[int, int]:
    """The clip and the frame that sample k uses."""
    return k % len(latents), _frame(latents, seed, k, sample_generator(seed, k))


def _frame(latents: Latents, seed: int, k: int, g: torch.Generator) -> int:
    """The frame of sample k: usually one in which the subject of the caption is visible."""
    frames: Sequence[int] = range(len(latents.times))
    if torch.rand((), generator=sample_generator(seed, k, 2)) >= ANY_FRAME:
        frames = latents.frames_with_subject(k % len(latents)) or frames
    return frames[int(torch.randint(len(frames), (), generator=g))]


def noised_frames(
    latents: Latents, tables: Tensor, seed: int, samples: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0 and noise (n, 4, h, w), timesteps (n,), alpha_bar (n, 1, 1, 1) of the samples."""
    n, x0, noise, t, alpha_bar = len(latents), [], [], [], []
    for k in samples:
        g = sample_generator(seed, k)
        frame = _frame(latents, seed, k, g)  # as in `place`
        step = torch.randint(1000, (), generator=g)
        linear = int(torch.rand((), generator=g) < LINEAR_SHARE)
        x0.append(latents.values[k % n][frame].float())
        noise.append(torch.randn(x0[-1].shape, generator=g))
        t.append(step)
        alpha_bar.append(tables[linear, step])
    return torch.stack(x0), torch.stack(noise), torch.stack(t), torch.stack(alpha_bar).view(-1, 1, 1, 1)
