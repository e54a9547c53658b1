"""DreamVideo's training (arXiv 2312.03018, section 4.3): eps loss on clips, the image is their first frame.

What learns: the image-retention branch, and the temporal layers of the primary U-Net; its spatial layers, those that
VidRD fine-tuned among them, and the text encoder stay. The image is pixels. In a tenth of the samples it is white, in a
tenth the text is empty, by draws of their own. What a run begins with: `dreamvideo_start`.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...model_patches import checkpoint
from ...model_patches.assembly import retention_branch
from ...model_patches.diffusers_host import dreamvideo, motion, vidrd
from ...model_patches.dreamvideo.image import white
from ...model_patches.systems import DREAMVIDEO
from ...model_patches.vidrd.model import VidrdModel
from ..data import latents
from ..data.latents import Latents, tensors_hash
from ..engine.loop import Average
from ..plans.dreamvideo import DreamVideoPlan
from ..plans.errors import ConfigError
from ..sampling.image_guided import Scales, clip
from . import bases
from .bases import Base
from .clip_task import ClipTask, Noised
from .dreamvideo_start import Start, beginning, put
from .layers import seed_dropout
from .preview import Preview, decoded

log = logging.getLogger(__name__)
FILE = "dreamvideo.safetensors"


@dataclass(frozen=True)
class Batch(Noised):
    """Samples as the model takes them."""

    image: Tensor  # (b, 3, s h, s w) in 0..1


class DreamVideoTask(ClipTask[DreamVideoPlan]):
    """What is trained: the branch (`branch`), and with `model.motion` the temporal layers (`motion`).

    It puts the weights that VidRD fine-tuned into the U-Net of `base`.
    """

    def __init__(self, base: Base, start: Start, plan: DreamVideoPlan, cache: Latents) -> None:
        super().__init__(base, plan, cache)
        self.config, self.motion, self.tuned = start.config, start.motion, start.tuned
        put(self.unet, start.tuned)
        self.branch = retention_branch(start.config)
        dreamvideo.start_from(self.branch, self.unet)
        if self.branch.temporal is not None:
            put(self.branch.temporal, self.motion.state_dict())
        put(self.branch, start.branch)
        self.motion.requires_grad_(plan.model.motion)
        layers = isinstance(self.motion, VidrdModel)
        moving = vidrd.attach(self.unet, self.motion) if layers else motion.attach(self.unet, self.motion)
        self.handle = dreamvideo.attach(self.unet, self.branch, moving)
        self.handle.recompute = plan.base.checkpointing
        self.apart = plan.model.motion and plan.model.dropout > 0  # masks of dropout belong to a sample, as in VidRD's
        self.size = cache.shape[-1] * start.config.branch.downscale  # of the image, in pixels

    def identity(self) -> dict[str, str]:
        """With what a start file leaves in the model for good: a resumed run needs the same."""
        given = self.frozen()
        kept = {f"unet.{name}": given[f"unet.{name}"] for name in self.tuned}
        kept |= {name: value for name, value in given.items() if not name.startswith(("unet.", "text."))}
        return super().identity() | {"start": tensors_hash(kept)}

    def frozen(self) -> dict[str, Tensor]:
        """Everything that does not learn, by name."""
        learns = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name not in learns}

    def frozen_hash(self) -> str:
        return tensors_hash(self.frozen())

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        batch, size, eps = self.draw(samples), 1 if self.apart else len(samples), []
        for i in range(0, len(samples), size):
            if self.apart:
                seed_dropout(self.plan.train.seed, samples[i])
            part = slice(i, i + size)
            eps.append(self.predict(batch.x_t[part], batch.t[part], batch.context[part], batch.image[part]))
        error = (torch.cat(eps) - batch.noise).square().flatten(1).mean(1)  # (b,)
        return {"loss": (self.level_weight(batch.alpha_bar) * error).mean(), **self.figures(error, batch.t)}

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor, image: Tensor) -> Tensor:  # type: ignore[override]
        """eps of the whole model: x_t (b, f, 4, h, w), t (b,), context (b, 77, d), image (b, 3, s h, s w) in 0..1, the
        null image white -> like x_t."""
        self.motion.train(self.plan.model.motion and torch.is_grad_enabled())  # no dropout in previews
        return self.handle.predict(x_t, t, context, image)

    def draw(self, samples: list[int]) -> Batch:
        """The samples; each a pure function of (seed, k)."""
        clips, generators = self.noised(samples)
        dropped = [bool(torch.rand((), generator=g) < self.plan.data.drop_image) for g in generators]
        shown = [white(self.size, self.size, clips.x_t[0])[0] if gone else None for gone in dropped]
        images = [self.image(int(i)) if blank is None else blank for i, blank in zip(clips.rows, shown, strict=True)]
        return Batch(**vars(clips), image=torch.stack(images))

    def image(self, row: int) -> Tensor:
        """Frame 0 of a clip, (3, s h, s w) in 0..1."""
        return self.cache.image(row, self.size).to(self.device)


class ImagePreview(Preview):
    """Pictures while training: an image, and the clip that begins with it; and clips of prompts alone, after white."""

    task: DreamVideoTask
    plan: DreamVideoPlan

    def rows(self) -> int:
        return self.plan.samples.clips + len(self.plan.samples.prompts)

    def pictures(self) -> Tensor:
        """(rows, 1 + columns, 3, H, W) in 0..1, the image first."""
        task, table = self.task, self.plan.samples
        chosen = sorted(set(task.order))[: table.clips]
        blank = white(task.size, task.size, torch.empty(0, device=task.device))[0]
        images = torch.stack([*(task.image(i) for i in chosen), *(blank for _ in table.prompts)])
        told = [*(task.cache.wording(i, f"samples/{i}", 0.0) for i in chosen), *table.prompts]
        noise = torch.randn(self.plan.data.frames, *task.cache.shape, generator=torch.Generator().manual_seed(0))
        scales = Scales(text=table.guidance, image=table.image)
        x = noise.repeat(len(told), 1, 1, 1, 1).to(task.device)
        words, steps = (task.context(told), task.context([""] * len(told))), table.steps
        made = clip(task.predict, x, *words, images, task.table, steps=steps, scales=scales)
        return torch.cat([images[:, None].cpu(), decoded(self.vae, made, table.columns)], dim=1)


def prepare(plan: DreamVideoPlan, tokenizer: Path) -> tuple[DreamVideoTask, Base]:
    """The task of a config, ready to be trained. Errors come from here, before anything is computed."""
    base = bases.load(plan.base, tokenizer)
    cache = latents.for_training(plan.data, base.vae)
    if not cache.has_images():
        raise ConfigError(
            f"the latents in {plan.data.latents} hold no first frames as pixels, which are the images here; encode the "
            "clips again with the verb `latents`"
        )
    return DreamVideoTask(base, beginning(plan, base), plan, cache), base


def preview(task: DreamVideoTask, base: Base, plan: DreamVideoPlan) -> ImagePreview:
    """The pictures that are drawn while training."""
    return ImagePreview(task, base.vae, plan)


def write(task: DreamVideoTask, average: Average, path: Path) -> None:
    """The averaged branch in half precision, and where they learned the temporal layers with what VidRD fine-tuned."""
    whole = task.state_dict() | average
    parts = ("branch.", "motion.") if task.config.motion else ("branch.",)
    weights = {name: value for name, value in whole.items() if name.startswith(parts)}
    if task.config.motion:
        weights |= {f"motion.{name}": value for name, value in task.tuned.items()}
    halves = {name: value.detach().half().cpu() for name, value in weights.items()}
    config, header = task.config.to_dict(), task.header()
    checkpoint.save(path, system=DREAMVIDEO, config=config, weights=halves, header=header)
    count, learned = (sum(v.numel() for v in values.values()) / 1e6 for values in (halves, average))
    log.info("%s: %.2f M weights, %.2f M of them learned, %.1f MB", path, count, learned, path.stat().st_size / 1e6)
