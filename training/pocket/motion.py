"""Training of temporal layers for the frozen pocket model: the motion module that HARIVO starts from, in AnimateDiff's
architecture (arXiv 2410.07763, 2307.04725).

The frames of a clip share the timestep and the caption; their noise is independent. The noise levels are those of the
*linear* betas (sigma up to 25): at Stable Diffusion's own highest level (14.6), the low frequencies of each frame's
noisy latent still reveal where its sprite is, so the frames cannot settle on a common motion.
"""

import logging
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...model_patches import checkpoint
from ...model_patches.core.config import MotionConfig
from ...model_patches.core.levels import alpha_bars
from ...model_patches.core.temporal import MotionModel
from ...model_patches.diffusers_host.motion import attach
from ...model_patches.diffusers_host.pocket import Pocket, load_pocket
from ...model_patches.systems import MOTION
from ..data import latents
from ..data.latents import Latents, weights_hash
from ..engine.loop import fit, sample_generator
from ..engine.task import Task
from ..plans.run import TrainTable
from ..systems.bases import BUNDLED_POCKET
from ..systems.weighting import loss_weight
from .text import Vocabulary
from .unet import DROP

log = logging.getLogger(__name__)


class MotionTask(Task):
    """eps MSE on clips (HARIVO Eq. 1); only the motion model is trained.

    A share `high_share` of the samples has a timestep of at least `high_noise`: there the positions and the motion are
    decided. `boost` gives high noise more weight in the loss (`loss_weight`): with 1 its gradient dominates all
    others, with 0 the shapes are learned as well. Clips at rest are used `still_weight` times as often as others.
    """

    def __init__(
        self,
        pocket: Pocket,
        vocabulary: Vocabulary,
        config: MotionConfig,
        latents: Latents,
        *,
        frames: int,
        seed: int = 0,
        boost: float = 1.0,
        high_noise: int = 600,
        high_share: float = 0.5,
        still_weight: int = 1,
    ) -> None:
        super().__init__()
        self.motion = MotionModel(config)
        self.unet, self.text = pocket.unet, pocket.text
        self.handle = attach(self.unet, self.motion)
        self.vocabulary, self.latents, self.frames, self.seed = vocabulary, latents, frames, seed
        self.boost, self.high_noise, self.high_share = boost, high_noise, high_share
        self.order = latents.epoch(still_weight)
        random.Random(seed).shuffle(self.order)
        self.table = alpha_bars(config.beta_schedule or "scaled_linear").float()
        mix = {"boost": boost, "high_noise": high_noise, "high_share": high_share, "still_weight": still_weight}
        self.identity_values = {"base": weights_hash(pocket.unet), "data": latents.digest, "frames": str(frames)}
        self.identity_values |= {f"train.{name}": str(value) for name, value in mix.items()}

    def identity(self) -> dict[str, str]:
        return self.identity_values

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        device = next(self.motion.parameters()).device
        x0, noise, t, alpha_bar = (v.to(device) for v in self._draw(samples))
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        with torch.no_grad():
            context = self.text(self.vocabulary.stock(self.captions(samples)).to(device)).last_hidden_state
        self.handle.frames = self.frames
        f = self.frames
        eps = self.unet(x_t.flatten(0, 1), t.repeat_interleave(f), context.repeat_interleave(f, 0)).sample
        error = (eps.unflatten(0, (-1, f)) - noise).square().mean((1, 2, 3, 4))
        weight = loss_weight(((1 - alpha_bar) / alpha_bar).sqrt().flatten(), self.boost)
        high = t >= self.high_noise
        losses = {"loss": (weight * error).mean(), "eps": error.mean().detach()}
        return losses | ({"eps_high": error[high].mean().detach()} if high.any() else {})

    def clip_of(self, sample: int) -> int:
        return self.order[sample % len(self.order)]

    def captions(self, samples: list[int]) -> list[str]:
        return [self.latents.wording(self.clip_of(k), f"motion/{self.seed}/{k}", DROP) for k in samples]

    def _draw(self, samples: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x0, noise (n, f, 4, h, w), timesteps (n,), alpha_bar (n, 1, 1, 1, 1)."""
        x0, noise, t = [], [], []
        for k in samples:
            g = sample_generator(self.seed, k)
            x0.append(self.latents.frames(self.clip_of(k), self.frames))
            high = torch.rand((), generator=g) < self.high_share
            t.append(torch.randint(self.high_noise if high else 0, 1000, (), generator=g))
            noise.append(torch.randn(x0[-1].shape, generator=g))
        steps = torch.stack(t)
        return torch.stack(x0), torch.stack(noise), steps, self.table[steps].view(-1, 1, 1, 1, 1)


def train(
    out: Path,
    recipe: dict[str, dict[str, Any]],
    tokenizer: Path,
    *,
    shards: Path,
    pocket: Path | None = None,
    start: Path | None = None,
    allow: Collection[str] = (),
) -> Path:
    """Train with a recipe and write `out/motion.safetensors`.

    Raises RuntimeError when a weight of the frozen base changed. `start`: a motion file to start from; `allow`: see
    engine.loop.fit.
    """
    base = load_pocket(pocket or BUNDLED_POCKET)
    base_hash = weights_hash(base.unet)
    sizes = {"block_channels": base.config.unet_channels, "layers_per_block": base.config.unet_layers}
    config = MotionConfig.from_dict(recipe["model"] | sizes)
    table = dict(recipe["train"])
    frames = table.pop("frames")
    mix = {name: table.pop(name) for name in ("boost", "high_noise", "high_share", "still_weight") if name in table}
    data = latents.read(shards, base.vae)
    task = MotionTask(base, Vocabulary(tokenizer), config, data, frames=frames, seed=table.get("seed", 0), **mix)
    if start:
        task.motion.load_state_dict(checkpoint.load(start).weights)
    run = TrainTable(out=out, **table)
    average = fit(task, run, allow=allow)
    if weights_hash(base.unet) != base_hash:
        raise RuntimeError("the frozen spatial weights changed during training; nothing was exported")
    task.load_state_dict(average, strict=False)
    weights = {k: v.half() for k, v in task.motion.state_dict().items()}
    path = out / "motion.safetensors"
    header = {"base": base_hash, "step": str(run.steps), "frames": str(frames), "prediction_type": "epsilon"}
    checkpoint.save(path, system=MOTION, config=config.to_dict(), weights=weights, header=header)
    log.info("wrote %s (%.1f MB); the base is unchanged (%s)", path, path.stat().st_size / 1e6, base_hash)
    return path
