"""What is trained beside the frozen pocket U-Net (a LoRA, a ControlNet), and the promise that it stays frozen."""

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from ...model_patches.diffusers_host.pocket import Pocket, load_pocket
from ..data.latents import Latents, weights_hash
from ..engine.loop import Task, fit
from ..plans.run import Run
from ..systems.bases import BUNDLED_POCKET
from ..systems.weighting import loss_weight
from .text import Vocabulary
from .unet import captions, noised_frames, tables


class AdapterTask(Task):
    """eps MSE on single frames, weighted as the U-Net's own training; a subclass says how eps is made."""

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
        drawn = noised_frames(self.latents, self.tables, self.seed, samples)
        x0, noise, t, alpha_bar = (v.to(device) for v in drawn)
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        texts = captions(self.latents, self.seed, samples)
        with torch.no_grad():
            context = self.text(self.vocabulary.stock(texts).to(device)).last_hidden_state
        error = (self.eps(x_t, t, context, samples) - noise).square().mean((1, 2, 3))
        weight = loss_weight(((1 - alpha_bar) / alpha_bar).sqrt().flatten(), self.boost)
        return {"loss": (weight * error).mean(), "eps": error.mean().detach()}


def base_of(path: Path | None) -> Pocket:
    """The image model: a pocket file, the bundled one where none is given."""
    return load_pocket(path or BUNDLED_POCKET)


def fit_beside(
    task: AdapterTask, run: Run, frozen: Callable[[nn.Module], dict[str, Tensor]], allow: Collection[str] = ()
) -> None:
    """Train; the task then holds the averaged weights. `frozen(unet)`: the base's weights by their own names.

    RuntimeError when one of them changed in a single bit.
    """
    before = {k: v.clone() for k, v in frozen(task.unet).items()}
    average = fit(task, run, allow=allow)
    task.load_state_dict(average, strict=False)
    task.to("cpu").eval()
    after = frozen(task.unet)
    if changed := [k for k, v in before.items() if not torch.equal(v, after[k])]:
        raise RuntimeError(f"{len(changed)} frozen weights changed, first {changed[0]}; nothing was exported")
