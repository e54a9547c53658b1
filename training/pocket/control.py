"""A ControlNet (arXiv 2302.05543) of the pocket U-Net, conditioned on edges; built with diffusers.

The edges come from the same detector and thresholds as ComfyUI's Canny node (kornia), so a user's edge images match the
training data. Half of the samples show the edges of the whole frame, the others only those of the sprite, like a sketch
on an empty page: such a hint is needed where sprite and background are equally bright, so that no edge is detected.
"""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.controlnets.controlnet import ControlNetModel
from kornia.filters import canny
from torch import Tensor

from ...model_patches import checkpoint
from ...model_patches.diffusers_host.pocket import Pocket
from ...model_patches.pocket import CONTROL_SYSTEM, compact_control
from ..data import latents
from ..data.latents import Latents
from ..engine.loop import first_process, sample_generator
from ..plans.run import TrainTable
from .adapters import AdapterTask, base_of, fit_beside
from .text import Vocabulary
from .unet import place

log = logging.getLogger(__name__)

HINT_SCALE = 8  # width of a ControlNet's hint divided by that of the latent; ComfyUI resizes any image to that


def edges(images: Tensor, low: float = 0.1, high: float = 0.2) -> Tensor:
    """White edges on black (n, 3, h, w) of images (n, 3 or 1, h, w) in 0..1, identical to ComfyUI's Canny node."""
    return canny(images, low, high)[1].repeat(1, 3, 1, 1)


class ControlTask(AdapterTask):
    def __init__(
        self,
        pocket: Pocket,
        vocabulary: Vocabulary,
        latents: Latents,
        seed: int = 0,
        *,
        low_threshold: float = 0.1,
        high_threshold: float = 0.2,
        sketch_share: float = 0.5,
    ) -> None:
        super().__init__(pocket, vocabulary, latents, seed)
        self.control = ControlNetModel.from_unet(self.unet).requires_grad_(True)
        self.thresholds, self.sketch_share = (low_threshold, high_threshold), sketch_share

    def identity(self) -> dict[str, str]:
        settings = {"control.thresholds": str(self.thresholds), "control.sketch_share": str(self.sketch_share)}
        return super().identity() | settings

    def eps(self, x_t: Tensor, t: Tensor, context: Tensor, samples: list[int]) -> Tensor:
        hints = self.hints(samples).to(x_t.device)
        down, middle = self.control(x_t, t, context, controlnet_cond=hints, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(x_t, t, context, **residuals).sample

    def hints(self, samples: list[int]) -> Tensor:
        """The edge images of the samples: (n, 3, 8 h, 8 w) for latents of h x w."""
        edge_images = edges(torch.cat([self._picture(k) for k in samples]), *self.thresholds)
        height, width = (HINT_SCALE * side for side in self.latents.shape[1:])
        return F.interpolate(edge_images, size=(height, width), mode="nearest-exact")

    def _picture(self, k: int) -> Tensor:
        """The image whose edges are the hint of sample k: (1, 3, h, w)."""
        number, frame = place(self.latents, self.seed, k)
        clip, times = self.latents.clip(number), [self.latents.times[frame]]
        sketch = torch.rand((), generator=sample_generator(self.seed, k, 1)) < self.sketch_share
        world = self.latents.world
        return world.mask(clip, times).repeat(1, 3, 1, 1) if sketch else world.render(clip, times)


def train(
    out: Path,
    recipe: dict[str, dict[str, Any]],
    tokenizer: Path,
    *,
    shards: Path,
    pocket: Path | None = None,
    allow: Collection[str] = (),
) -> Path:
    """Train with a recipe on the latents of drawn clips in `shards`, and write `out/control_edges.safetensors`.

    An interrupted training resumes (`allow`: see engine.loop.fit).
    """
    run, base = TrainTable(out=out, **recipe["train"]), base_of(pocket)
    data = latents.read(shards, base.vae)
    task = ControlTask(base, Vocabulary(tokenizer), data, run.seed, **recipe["control"])
    fit_beside(task, run, lambda unet: unet.state_dict(), allow)
    path = out / "control_edges.safetensors"
    if first_process():
        header = {"base": task.base, "step": str(run.steps), "control": recipe["control"]}
        weights = compact_control(base.config, task.control.state_dict())
        checkpoint.save(path, system=CONTROL_SYSTEM, config=base.config.to_dict(), weights=weights, header=header)
        log.info("wrote %s (%.1f MB); the base is unchanged (%s)", path, path.stat().st_size / 1e6, task.base)
    return path
