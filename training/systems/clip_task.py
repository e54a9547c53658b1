"""Shared code for training a video model on cached clips: samples, noise, captions, loss weights of noise levels.

The frames of a clip share the timestep and the caption; their noise is independent. Everything random about sample k is
a pure function of (seed, k).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ...model_patches.core.levels import BETA_END, BETA_START, alpha_bars
from ..data.latents import Latents
from ..data.order import row
from ..engine.loop import sample_generator
from ..engine.task import SystemTask
from ..plans.common import BasePlan
from ..plans.errors import ConfigError
from .bases import Base
from .weighting import loss_weight

P = TypeVar("P", bound=BasePlan)
T = TypeVar("T", bound="ClipTask[Any]")


@dataclass(frozen=True)
class NoisedClips:
    """The inputs of the model for some samples: b clips of f frames."""

    x_t: Tensor  # (b, f, 4, h, w)
    noise: Tensor  # (b, f, 4, h, w)
    t: Tensor  # (b,)
    alpha_bar: Tensor  # (b,)
    context: Tensor  # (b, 77, d)
    rows: Tensor  # (b,), the numbers of the clips


class ClipTask(SystemTask, Generic[P]):
    """A task on the clips of a cache. `predict(x_t, t, context)` returns eps of the complete model."""

    def __init__(self, base: Base, plan: P, cache: Latents) -> None:
        super().__init__()
        self.plan, self.cache = plan, cache
        self.unet, self.text, self.ids = base.unet, base.text, base.ids
        model = plan.model
        start, end = model.beta_start or BETA_START, model.beta_end or BETA_END
        self.table = alpha_bars(model.beta_schedule or "scaled_linear", start, end).float()
        self.base_hash = base.hash
        self.order = cache.epoch(plan.data.still_weight)

    @property
    def device(self) -> torch.device:
        return next(p for p in self.parameters() if p.requires_grad).device

    def identity(self) -> dict[str, str]:
        return self.plan.settings() | {"base": self.base_hash, "data": self.cache.digest}

    def header(self) -> dict[str, Any]:
        """The header of a file of trained weights, which records how they were trained."""
        plan = self.plan
        return {
            "base": self.base_hash,
            "step": str(plan.train.steps),
            "frames": str(plan.data.frames),
            "prediction_type": "epsilon",
            "loss": asdict(plan.loss),
        }

    def base_network(self) -> nn.Module:
        return self.unet

    def data_summary(self) -> str:
        cache = self.cache
        return f"{len(cache)} clips of {len(cache.times)} frames, latents {tuple(cache.shape)}"

    def draw(self, samples: list[int]) -> object:
        return self.noised(samples)[0]

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """eps of the complete model: x_t (b, f, 4, h, w), t (b,), context (b, 77, d) -> like x_t."""
        raise NotImplementedError

    def noised(self, samples: list[int]) -> tuple[NoisedClips, list[torch.Generator]]:
        """The noised clips of the samples, and each sample's generator for further random numbers."""
        f, plan = self.plan.data.frames, self.plan
        device = self.device
        rows = [self.clip_of(k) for k in samples]
        generators = [sample_generator(plan.train.seed, k) for k in samples]
        t, noise = [], []
        for g in generators:
            high = torch.rand((), generator=g) < plan.loss.high_share
            t.append(torch.randint(plan.loss.high_noise if high else 0, len(self.table), (), generator=g))
            noise.append(torch.randn(f, *self.cache.shape, generator=g))
        x0 = torch.stack([self.cache.frames(i, f) for i in rows]).to(device)
        steps, eps = torch.stack(t), torch.stack(noise).to(device)
        alpha_bar = self.table[steps].to(device)
        level = alpha_bar.view(-1, 1, 1, 1, 1)
        clips = NoisedClips(
            x_t=level.sqrt() * x0 + (1 - level).sqrt() * eps,
            noise=eps,
            t=steps.to(device),
            alpha_bar=alpha_bar,
            context=self.context(self.captions(samples)),
            rows=torch.tensor(rows, device=device),
        )
        return clips, generators

    def clip_of(self, k: int) -> int:
        return self.order[row(self.plan.train.seed, k, len(self.order))]

    def captions(self, samples: list[int]) -> list[str]:
        seed, drop = self.plan.train.seed, self.plan.data.drop
        return [self.cache.wording(self.clip_of(k), f"{self.plan.system}/{seed}/{k}", drop) for k in samples]

    @torch.no_grad()
    def context(self, captions: list[str]) -> Tensor:  # -> (b, 77, d)
        return self.text(self.ids(captions).to(self.device)).last_hidden_state.float()

    def level_weight(self, alpha_bar: Tensor) -> Tensor:
        """Loss weights of noise levels: (b,) -> (b,)."""
        if self.plan.loss.dsm == "plain":
            return torch.ones_like(alpha_bar)
        return loss_weight(((1 - alpha_bar) / alpha_bar).sqrt(), self.plan.loss.boost)

    def figures(self, error: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Figures for the log: means of the clips' errors (b,) at timesteps t (b,), in total and at high noise."""
        high = t >= self.plan.loss.high_noise
        return {"eps": error.mean().detach()} | ({"eps_high": error[high].mean().detach()} if high.any() else {})


def misfit(path: Path, name: str) -> ConfigError:
    """The error for a start file whose weight or setting `name` does not match this model."""
    return ConfigError(
        f"model.start: {path.name} does not fit this model ({name} has another size or is missing); start from a file "
        "of the same base and the same [model] sizes, or without a file"
    )
