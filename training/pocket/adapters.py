"""Training of adapters (LoRA, ControlNet) of the frozen pocket U-Net, with a check that its weights stay unchanged."""

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from ...model_patches.diffusers_host.pocket import Pocket, load_pocket
from ..data.latents import Latents, weights_hash
from ..engine.loop import fit
from ..engine.task import Task
from ..plans.run import TrainTable
from ..systems.bases import BUNDLED_POCKET
from ..systems.weighting import loss_weight
from .text import Vocabulary
from .unet import captions, noised_frames, tables


class AdapterTask(Task):
    """eps MSE on single frames, with the loss weight of the U-Net's own training; a subclass defines the prediction."""

    def __init__(
        self, pocket: Pocket, vocabulary: Vocabulary, latents: Latents, seed: int = 0, *, boost: float = 0.5
    ) -> None:
        super().__init__()
        self.base = weights_hash(pocket.unet)
        self.unet, self.text = pocket.unet, pocket.text
        self.vocabulary, self.latents, self.seed, self.boost = vocabulary, latents, seed, boost
        self.tables = tables()

    def identity(self) -> dict[str, str]:
        return {"base": self.base, "data": self.latents.digest}

    def eps(self, x_t: Tensor, t: Tensor, context: Tensor, samples: list[int]) -> Tensor:
        """The prediction for noisy latents (n, 4, h, w) at timesteps (n,) with text (n, 77, d): (n, 4, h, w)."""
        raise NotImplementedError

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        device = next(self.unet.parameters()).device
        batch = noised_frames(self.latents, self.tables, self.seed, samples)
        x0, noise, t, alpha_bar = (v.to(device) for v in batch)
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        texts = captions(self.latents, self.seed, samples)
        with torch.no_grad():
            context = self.text(self.vocabulary.stock(texts).to(device)).last_hidden_state
        error = (self.eps(x_t, t, context, samples) - noise).square().mean((1, 2, 3))
        weight = loss_weight(((1 - alpha_bar) / alpha_bar).sqrt().flatten(), self.boost)
        return {"loss": (weight * error).mean(), "eps": error.mean().detach()}


def base_of(path: Path | None) -> Pocket:
    """Load the image model from a pocket file; the default is the bundled one."""
    return load_pocket(path or BUNDLED_POCKET)


def fit_beside(
    task: AdapterTask,
    run: TrainTable,
    base_weights: Callable[[nn.Module], dict[str, Tensor]],
    allow: Collection[str] = (),
) -> None:
    """Train; afterwards the task holds the averaged weights. `base_weights(unet)` returns the base's weights by name.

    Raises RuntimeError when a single bit of them changed.
    """
    start = {k: v.clone() for k, v in base_weights(task.unet).items()}
    average = fit(task, run, allow=allow)
    task.load_state_dict(average, strict=False)
    task.to("cpu").eval()
    end = base_weights(task.unet)
    if names := [k for k, v in start.items() if not torch.equal(v, end[k])]:
        raise RuntimeError(f"{len(names)} frozen weights changed, first {names[0]}; nothing was exported")
