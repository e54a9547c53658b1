"""VidRD's training (arXiv 2309.03549, section 3.2): eps loss on clips, for temporal layers and spatial transformers.

All other weights of the image model and the text encoder are frozen. The temporal layers have dropout. Its masks must
depend on the sample and not on the process that computes it, so that clips are computed one by one, each with its own
random numbers. With model.dropout = 0 they are computed together.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...model_patches import checkpoint
from ...model_patches.diffusers_host.vidrd import attach
from ...model_patches.systems import VIDRD
from ...model_patches.vidrd.config import VidrdConfig
from ...model_patches.vidrd.model import VidrdModel, is_temporal
from ..data import latents
from ..data.latents import Latents, tensors_hash
from ..engine.loop import Average
from ..plans.vidrd import VidrdModelTable, VidrdPlan
from . import bases
from .bases import Base
from .clip_task import ClipTask, misfit
from .layers import layers_config, seed_dropout
from .preview import Preview

log = logging.getLogger(__name__)
FILE = "vidrd.safetensors"


class VidrdTask(ClipTask[VidrdPlan]):
    """Trains the temporal layers (`vidrd`), and the blocks of the U-Net's spatial transformers."""

    def __init__(self, base: Base, config: VidrdConfig, plan: VidrdPlan, cache: Latents) -> None:
        super().__init__(base, plan, cache)
        self.config = config
        self.vidrd = VidrdModel(replace(config, spatial=False))
        self.handle = attach(self.unet, self.vidrd)
        for _, parameter in self.tuned():
            parameter.data = parameter.data.float()  # small updates would be lost in half precision
            parameter.requires_grad_(True)

    def tuned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The fine-tuned weights of the U-Net, by their names in a VidRD model; none if they are frozen."""
        if not self.config.spatial:
            return
        for name, parameter in self.unet.named_parameters():
            if ".transformer_blocks." in name:
                yield name, parameter

    def frozen_hash(self) -> str:
        """A hash of the frozen weights of the U-Net."""
        tuned = {name for name, _ in self.tuned()}
        return tensors_hash({k: v for k, v in self.unet.state_dict().items() if k not in tuned})

    def part_of(self, parameter: str) -> str:
        return "temporal" if parameter.startswith("vidrd.") else super().part_of(parameter)

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        clips, _ = self.noised(samples)
        parts = range(len(samples)) if self.config.dropout else [slice(None)]
        eps = []
        for part in parts:
            rows = slice(part, part + 1) if isinstance(part, int) else part
            if isinstance(part, int):
                seed_dropout(self.plan.train.seed, samples[part])
            eps.append(self.predict(clips.x_t[rows], clips.t[rows], clips.context[rows]))
        error = (torch.cat(eps) - clips.noise).square().flatten(1).mean(1)  # (b,)
        return {"loss": (self.level_weight(clips.alpha_bar) * error).mean(), **self.figures(error, clips.t)}

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """eps of the complete model: x_t (b, f, 4, h, w), t (b,), context (b, 77, d) -> like x_t."""
        self.vidrd.train(torch.is_grad_enabled())  # no dropout in previews
        return self.handle.predict(x_t, t, context)


def vidrd_config(table: VidrdModelTable, base: Base, frames: int) -> VidrdConfig:
    """The configuration of the trained parts for this base."""
    return replace(layers_config(table, base, frames), spatial=table.spatial)


def start_from(task: VidrdTask, start: str) -> None:
    """Load the weights of a VidRD file of the same sizes."""
    path = Path(start)
    file = checkpoint.load(path, expect=VIDRD)
    params = dict(task.vidrd.named_parameters()) | dict(task.tuned())
    mismatches = sorted(k for k in params if k not in file.weights or file.weights[k].shape != params[k].shape)
    if mismatches:
        raise misfit(path, mismatches[0])
    with torch.no_grad():
        for name, parameter in params.items():
            parameter.copy_(file.weights[name])
    log.info("training starts from the weights of %s", path)


def prepare(plan: VidrdPlan, tokenizer: Path) -> tuple[VidrdTask, Base]:
    """The task of a config, ready to be trained, and its base. Reports errors before anything is computed."""
    base = bases.load(plan.base, tokenizer)
    cache = latents.for_training(plan.data, base.vae)
    task = VidrdTask(base, vidrd_config(plan.model, base, plan.data.frames), plan, cache)
    if plan.model.start:
        start_from(task, plan.model.start)
    return task, base


def preview(task: VidrdTask, base: Base, plan: VidrdPlan) -> Preview:
    """The previews during training."""
    return Preview(task, base.vae, plan)


def write(task: VidrdTask, average: Average, path: Path) -> None:
    """Write the averaged temporal and spatial weights in half precision, and a header with the settings."""
    weights = {k.removeprefix("vidrd.").removeprefix("unet."): v.detach().half() for k, v in average.items()}
    checkpoint.save(path, system=VIDRD, config=task.config.to_dict(), weights=weights, header=task.header())
    temporal = sum(v.numel() for k, v in weights.items() if is_temporal(k)) / 1e6
    total = sum(v.numel() for v in weights.values()) / 1e6
    log.info("wrote %s: %.2f M weights, %.2f M of them temporal; the others are unchanged", path, total, temporal)
