"""Previews during training: a few prompts with fixed noise, sampled with DDIM; a PNG with a row of frames for each."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ...model_patches.pocket import SCALE
from ..engine.loop import Average
from ..plans.common import BasePlan
from ..sampling.ddim import ddim
from .clip_task import ClipTask

log = logging.getLogger(__name__)


class Preview:
    """Called after every step; at the steps of the config, writes RUN/samples/step-NNNNNNNN.png with the average."""

    def __init__(self, task: ClipTask, vae, plan: BasePlan) -> None:
        self.task, self.vae, self.plan = task, vae, plan

    def __call__(self, step: int, average: Average) -> None:
        table = self.plan.samples
        if not table.every or not self.rows() or (step % table.every and step != self.plan.train.steps):
            return
        path = self.plan.train.out / "samples" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        with averaged(self.task, average):
            pictures = self.pictures()
        save_grid(pictures, path)
        log.info("wrote %s", path)

    def rows(self) -> int:
        """The number of videos in a preview."""
        return len(self.plan.samples.prompts)

    def pictures(self) -> Tensor:
        """The frames of a preview: (rows, columns, 3, H, W) in 0..1."""
        table = self.plan.samples
        return decoded(self.vae, self.latents(list(table.prompts)), table.columns)

    def latents(self, prompts: list[str]) -> Tensor:
        """Sample the videos of the prompts: (prompts, f, 4, h, w)."""
        table = self.plan.samples
        return sample(self.task, prompts, steps=table.steps, guidance=table.guidance)


@contextlib.contextmanager
def averaged(task: nn.Module, average: Average) -> Iterator[None]:
    """A context in which the task has its averaged weights; its own weights are restored at the end."""
    params = {n: p for n, p in task.named_parameters() if n in average}
    backup = {n: p.detach().clone() for n, p in params.items()}
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(average[name])
        try:
            yield
        finally:
            for name, param in params.items():
                param.copy_(backup[name])


def sample(
    task: ClipTask, prompts: list[str], *, steps: int, guidance: float, frames: int = 0, seed: int = 0
) -> Tensor:
    """Sample one clip for each prompt with DDIM, all from the same noise: (prompts, f, 4, h, w)."""
    f = frames or task.plan.data.frames
    device = task.device
    noise = torch.randn(f, *task.cache.shape, generator=torch.Generator().manual_seed(seed))
    x = noise.repeat(len(prompts), 1, 1, 1, 1).to(device)
    context, empty = task.context(prompts), task.context([""] * len(prompts))
    return ddim(task.predict, x, context, empty, task.table, steps=steps, guidance=guidance)


@torch.no_grad()
def decoded(vae, latents: Tensor, columns: int) -> Tensor:
    """Decode at most `columns` evenly spaced frames of clips (n, f, 4, h, w): (n, columns, 3, H, W) in 0..1."""
    places = torch.linspace(0, latents.shape[1] - 1, min(columns, latents.shape[1])).round().long()
    weight = next(vae.parameters())
    rows = [vae.decode(clip[places].to(weight) / SCALE).sample.clamp(-1, 1) / 2 + 0.5 for clip in latents]
    return torch.stack(rows).float().cpu()


def save_grid(pictures: Tensor, path: Path) -> None:
    """Write images (rows, columns, 3, H, W) in 0..1 into one PNG."""
    grid = pictures.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # (rows H, columns W, 3)
    Image.fromarray((grid * 255).round().byte().numpy()).save(path)
