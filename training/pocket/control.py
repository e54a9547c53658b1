"""A ControlNet (arXiv 2302.05543) of the pocket U-Net that draws along edges, through diffusers.

The edges are those of ComfyUI's Canny node (kornia's detector, the same thresholds), so what a user makes there is what
was trained on. Half of the samples show the edges of the whole frame, the others those of the sprite alone, as a sketch
on an empty page would: such a hint must do where sprite and background are equally bright and their edges are lost.
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
from ..data import latents, sprites
from ..data.latents import Latents
from ..engine.loop import first_process, sample_generator
from ..plans.run import Run
from .adapters import AdapterTask, base_of, fit_beside
from .text import Vocabulary
from .unet import place

log = logging.getLogger(__name__)

HINT_SCALE = 8  # a ControlNet's hint is so many times as wide as the latent; ComfyUI resizes any image to that


def edges(images: Tensor, low: float = 0.1, high: float = 0.2) -> Tensor:
    """White edges on black (n, 3, h, w) of images (n, 3 or 1, h, w) in 0..1, as ComfyUI's Canny node draws them."""
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
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(x_t, t, context, **added).sample

    def hints(self, samples: list[int]) -> Tensor:
        """(n, 3, 8 h, 8 w) for latents of h x w."""
        found = edges(torch.cat([self._picture(k) for k in samples]), *self.thresholds)
        height, width = (HINT_SCALE * side for side in self.latents.shape[1:])
        return F.interpolate(found, size=(height, width), mode="nearest-exact")

    def _picture(self, k: int) -> Tensor:
        """What the edges of sample k are taken from: (1, 3, h, w)."""
        clip, frame = place(self.latents, self.seed, k)
        shown, times = self.latents.clip(clip), [self.latents.times[frame]]
        sketch = torch.rand((), generator=sample_generator(self.seed, k, 1)) < self.sketch_share
        return sprites.sprite_mask(shown, times).repeat(1, 3, 1, 1) if sketch else sprites.render(shown, times)


def train(
    out: Path,
    recipe: dict[str, dict[str, Any]],
    tokenizer: Path,
    *,
    shards: Path,
    pocket: Path | None = None,
    allow: Collection[str] = (),
) -> Path:
    """Train as the recipe says on the latents of drawn clips in `shards`, resuming (`allow`: see engine.fit).

    Writes `out/control_edges.safetensors`.
    """
    run, base = Run(out=out, **recipe["train"]), base_of(pocket)
    data = latents.read(shards, base.vae)
    task = ControlTask(base, Vocabulary(tokenizer), data, run.seed, **recipe["control"])
    fit_beside(task, run, lambda unet: unet.state_dict(), allow)
    path = out / "control_edges.safetensors"
    if first_process():
        header = {"base": task.base, "step": str(run.steps), "control": recipe["control"]}
        weights = compact_control(base.config, task.control.state_dict())
        checkpoint.save(path, system=CONTROL_SYSTEM, config=base.config.to_dict(), weights=weights, header=header)
        log.info("%s: %.1f MB; the base is untouched (%s)", path, path.stat().st_size / 1e6, task.base)
    return path
