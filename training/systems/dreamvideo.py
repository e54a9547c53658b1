"""DreamVideo's training (arXiv 2312.03018, section 4.3): eps loss on clips; the image is the clip's first frame.

The image-retention branch and the temporal layers of the primary U-Net are trained. The spatial layers of the U-Net,
including those that VidRD fine-tuned, and the text encoder are frozen. The image is given in pixels. In a tenth of the
samples the image is white, and in a tenth the text is empty, independently of each other. The initial weights are those
of `dreamvideo_start`.
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
from .clip_task import ClipTask, NoisedClips
from .dreamvideo_start import Start, copy_weights, load_start
from .layers import seed_dropout
from .preview import Preview, decoded

log = logging.getLogger(__name__)
FILE = "dreamvideo.safetensors"


@dataclass(frozen=True)
class Batch(NoisedClips):
    """The inputs of the model for some samples."""

    image: Tensor  # (b, 3, s h, s w) in 0..1


class DreamVideoTask(ClipTask[DreamVideoPlan]):
    """Trains the branch (`branch`), and with `model.motion` the temporal layers (`motion`).

    It copies the weights that VidRD fine-tuned into the U-Net of `base`.
    """

    def __init__(self, base: Base, start: Start, plan: DreamVideoPlan, cache: Latents) -> None:
        super().__init__(base, plan, cache)
        self.config, self.motion, self.tuned = start.config, start.motion, start.tuned
        copy_weights(self.unet, start.tuned)
        self.branch = retention_branch(start.config)
        dreamvideo.start_from(self.branch, self.unet)
        if self.branch.temporal is not None:
            copy_weights(self.branch.temporal, self.motion.state_dict())
        copy_weights(self.branch, start.branch)
        self.motion.requires_grad_(plan.model.motion)
        layers = isinstance(self.motion, VidrdModel)
        motion_handle = vidrd.attach(self.unet, self.motion) if layers else motion.attach(self.unet, self.motion)
        self.handle = dreamvideo.attach(self.unet, self.branch, motion_handle)
        self.handle.recompute = plan.base.checkpointing
        self.one_by_one = plan.model.motion and plan.model.dropout > 0  # dropout masks per sample, as for VidRD
        self.size = cache.shape[-1] * start.config.branch.downscale  # side of the image in pixels

    def identity(self) -> dict[str, str]:
        """The identity also includes the frozen weights of a start file, which a resumed run needs again."""
        frozen = self.frozen()
        start = {f"unet.{name}": frozen[f"unet.{name}"] for name in self.tuned}
        start |= {name: value for name, value in frozen.items() if not name.startswith(("unet.", "text."))}
        return super().identity() | {"start": tensors_hash(start)}

    def frozen(self) -> dict[str, Tensor]:
        """All weights that are not trained, by name."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name not in trained}

    def frozen_hash(self) -> str:
        return tensors_hash(self.frozen())

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        batch, size, eps = self.draw(samples), 1 if self.one_by_one else len(samples), []
        for i in range(0, len(samples), size):
            if self.one_by_one:
                seed_dropout(self.plan.train.seed, samples[i])
            part = slice(i, i + size)
            eps.append(self.predict(batch.x_t[part], batch.t[part], batch.context[part], batch.image[part]))
        error = (torch.cat(eps) - batch.noise).square().flatten(1).mean(1)  # (b,)
        return {"loss": (self.level_weight(batch.alpha_bar) * error).mean(), **self.figures(error, batch.t)}

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor, image: Tensor) -> Tensor:  # type: ignore[override]
        """eps of the complete model, like x_t.

        x_t (b, f, 4, h, w), t (b,), context (b, 77, d), image (b, 3, s h, s w) in 0..1; a white image means none.
        """
        self.motion.train(self.plan.model.motion and torch.is_grad_enabled())  # no dropout in previews
        return self.handle.predict(x_t, t, context, image)

    def draw(self, samples: list[int]) -> Batch:
        """The inputs for the samples; each is a pure function of (seed, k)."""
        clips, generators = self.noised(samples)
        drops = [bool(torch.rand((), generator=g) < self.plan.data.drop_image) for g in generators]
        blank = white(self.size, self.size, clips.x_t[0])[0]
        images = [blank if drop else self.image(int(i)) for i, drop in zip(clips.rows, drops, strict=True)]
        return Batch(**vars(clips), image=torch.stack(images))

    def image(self, row: int) -> Tensor:
        """Frame 0 of a clip, (3, s h, s w) in 0..1."""
        return self.cache.image(row, self.size).to(self.device)


class ImagePreview(Preview):
    """Previews during training: images with the clips that start from them, and clips of prompts with a white image."""

    task: DreamVideoTask
    plan: DreamVideoPlan

    def rows(self) -> int:
        return self.plan.samples.clips + len(self.plan.samples.prompts)

    def pictures(self) -> Tensor:
        """(rows, 1 + columns, 3, H, W) in 0..1, the image first."""
        task, table = self.task, self.plan.samples
        numbers = sorted(set(task.order))[: table.clips]
        blank = white(task.size, task.size, torch.empty(0, device=task.device))[0]
        images = torch.stack([*(task.image(i) for i in numbers), *(blank for _ in table.prompts)])
        captions = [*(task.cache.wording(i, f"samples/{i}", 0.0) for i in numbers), *table.prompts]
        noise = torch.randn(self.plan.data.frames, *task.cache.shape, generator=torch.Generator().manual_seed(0))
        scales = Scales(text=table.guidance, image=table.image)
        x = noise.repeat(len(captions), 1, 1, 1, 1).to(task.device)
        context, empty = task.context(captions), task.context([""] * len(captions))
        clips = clip(task.predict, x, context, empty, images, task.table, steps=table.steps, scales=scales)
        return torch.cat([images[:, None].cpu(), decoded(self.vae, clips, table.columns)], dim=1)


def prepare(plan: DreamVideoPlan, tokenizer: Path) -> tuple[DreamVideoTask, Base]:
    """The task of a config, ready to be trained, and its base. Reports errors before anything is computed."""
    base = bases.load(plan.base, tokenizer)
    cache = latents.for_training(plan.data, base.vae)
    if not cache.has_images():
        raise ConfigError(
            f"the latents in {plan.data.latents} hold no first frames in pixels, which are needed as images; encode "
            "the clips again with the verb `latents`"
        )
    return DreamVideoTask(base, load_start(plan, base), plan, cache), base


def preview(task: DreamVideoTask, base: Base, plan: DreamVideoPlan) -> ImagePreview:
    """The previews during training."""
    return ImagePreview(task, base.vae, plan)


def write(task: DreamVideoTask, average: Average, path: Path) -> None:
    """Write the averaged branch in half precision and, if they were trained, the temporal layers.

    The weights that VidRD fine-tuned are written with the temporal layers.
    """
    state = task.state_dict() | average
    parts = ("branch.", "motion.") if task.config.motion else ("branch.",)
    weights = {name: value for name, value in state.items() if name.startswith(parts)}
    if task.config.motion:
        weights |= {f"motion.{name}": value for name, value in task.tuned.items()}
    halves = {name: value.detach().half().cpu() for name, value in weights.items()}
    config, header = task.config.to_dict(), task.header()
    checkpoint.save(path, system=DREAMVIDEO, config=config, weights=halves, header=header)
    count, trained = (sum(v.numel() for v in values.values()) / 1e6 for values in (halves, average))
    size = path.stat().st_size / 1e6
    log.info("wrote %s: %.2f M weights, of which %.2f M were trained, %.1f MB", path, count, trained, size)
