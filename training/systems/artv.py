"""ART-V's training (arXiv 2311.18834, Eq. 4): single frames, conditioned on the two previous frames and an anchor.

One eps loss trains both networks, through the blend of Eq. 7. Sample k is a frame i >= 1 of a clip. Its references are
the frames i - 1 and i - 2 (for i = 1, frame 0 twice, as at the start of a video), and the anchor is one of the 10
frames before it; all are noised to a level from 0 to 550. Text, references and anchor are each dropped in 10 % of the
samples, independently of each other.

With `model.unet` the image U-Net is trained as well, as in the paper. It is then written to a separate file next to
ART-V's: `unet.safetensors`, a diffusion model with diffusers' keys. Without it, the U-Net stays frozen, as for the
bundled pocket model.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...model_patches import checkpoint
from ...model_patches.artv.config import ArtvConfig
from ...model_patches.artv.model import ArtvModel
from ...model_patches.diffusers_host.artv import ArtvUNet
from ...model_patches.files import write_tensors
from ...model_patches.systems import ARTV
from ..data import latents
from ..data.latents import Latents, tensors_hash, weights_hash
from ..engine.loop import Average, sample_generator
from ..plans.artv import ArtvModelTable, ArtvPlan
from ..plans.errors import ConfigError
from ..sampling.autoregressive import FrameModel, Settings, roll
from . import bases
from .bases import Base
from .clip_task import ClipTask, misfit
from .preview import Preview

log = logging.getLogger(__name__)
FILE = "artv.safetensors"
HEAD_WIDTH = 32  # channels per head of the mask network
MASK_SHARE = 5  # the U-Net's channels divided by those of the mask network: 320 to 64


@dataclass(frozen=True)
class Frames:
    """The inputs of the model for some samples: n frames."""

    y_t: Tensor  # (n, 4, h, w)
    noise: Tensor  # (n, 4, h, w)
    t: Tensor  # (n,)
    alpha_bar: Tensor  # (n,)
    context: Tensor  # (n, 77, d)
    references: Tensor  # (n, 2, 4, h, w), y^{i-1} and y^{i-2}, without noise
    anchor: Tensor  # (n, 4, h, w), without noise
    augmentation: Tensor  # (n, 3, 4, h, w), unit noise for the references and the anchor
    level: Tensor  # (n,)
    no_references: Tensor  # (n,) bool
    no_anchor: Tensor  # (n,) bool


@dataclass(frozen=True)
class Draw:
    """The random values of a sample, except for its caption."""

    frame: int
    anchor: int
    t: int
    level: int
    no_references: bool
    no_anchor: bool
    noise: Tensor  # (4, 4, h, w): of the frame, of the two references and of the anchor


class ArtvTask(ClipTask[ArtvPlan]):
    """Trains the ART-V model (`artv`), and with `model.unet` the image U-Net."""

    def __init__(self, base: Base, config: ArtvConfig, plan: ArtvPlan, cache: Latents) -> None:
        super().__init__(base, plan, cache)
        self.artv = ArtvModel(config)
        self.host = ArtvUNet(self.unet, self.artv)
        for _, parameter in self.tuned():
            parameter.data = parameter.data.float()  # small updates would be lost in half precision
            parameter.requires_grad_(True)

    def tuned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained weights of the image U-Net, by their names in it."""
        if self.plan.model.unet:
            yield from self.unet.named_parameters()

    def frozen_hash(self) -> str:
        """A hash of the text encoder, and of the U-Net unless it is trained."""
        return weights_hash(self.text) + ("" if self.plan.model.unet else weights_hash(self.unet))

    def part_of(self, parameter: str) -> str:
        return super().part_of(parameter.removeprefix("artv."))

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        frames = self.draw(samples)
        eps, m = self.predict(frames)
        error = (eps - frames.noise).square().flatten(1).mean(1)  # (n,)
        has_reference = ~frames.no_references
        mask = {"mask": m[has_reference].mean().detach()} if has_reference.any() else {}
        return {
            "loss": (self.level_weight(frames.alpha_bar) * error).mean(),
            **self.figures(error, frames.t),
            **mask,
        }

    def predict(self, frames: Frames) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """eps of the complete model (n, 4, h, w) and the mask (n, 1, h, w)."""
        eps, m, _ = self.host(
            frames.y_t,
            frames.t,
            frames.context,
            frames.references,
            frames.anchor,
            frames.augmentation,
            frames.level,
            no_references=frames.no_references,
            no_anchor=frames.no_anchor,
        )
        return eps, m

    def draw(self, samples: list[int]) -> Frames:
        """The inputs for the samples; each is a pure function of (seed, k)."""
        device, count = self.device, self.plan.data.frames
        draws = [self.random_values(k) for k in samples]
        clips = [self.cache.frames(self.clip_of(k), count) for k in samples]
        noise = torch.stack([draw.noise for draw in draws]).to(device)

        def values(name: str) -> Tensor:
            return torch.tensor([getattr(draw, name) for draw in draws], device=device)

        def frame_before(offset: int) -> Tensor:
            frames = [clip[max(draw.frame - offset, 0)] for clip, draw in zip(clips, draws, strict=True)]
            return torch.stack(frames).to(device)

        t = values("t")
        alpha_bar = self.table.to(device)[t]
        level = alpha_bar.view(-1, 1, 1, 1)
        return Frames(
            y_t=level.sqrt() * frame_before(0) + (1 - level).sqrt() * noise[:, 0],
            noise=noise[:, 0],
            t=t,
            alpha_bar=alpha_bar,
            context=self.context(self.captions(samples)),
            references=torch.stack([frame_before(1), frame_before(2)], dim=1),
            anchor=torch.stack([clip[draw.anchor] for clip, draw in zip(clips, draws, strict=True)]).to(device),
            augmentation=noise[:, 1:],
            level=values("level"),
            no_references=values("no_references"),
            no_anchor=values("no_anchor"),
        )

    def random_values(self, k: int) -> Draw:
        """The random values of sample k, from its own generator. All of them are drawn, even if they are not used."""
        data, loss = self.plan.data, self.plan.loss
        g = sample_generator(self.plan.train.seed, k)

        def integer(low: int, high: int) -> int:  # low to high - 1
            return int(torch.randint(low, high, (), generator=g))

        def chance(p: float) -> bool:
            return bool(torch.rand((), generator=g) < p)

        frame = integer(1, data.frames)
        return Draw(
            frame=frame,
            anchor=integer(max(0, frame - data.anchor_window), frame),
            t=integer(loss.high_noise if chance(loss.high_share) else 0, len(self.table)),
            level=integer(0, data.max_level + 1),
            no_references=chance(data.drop_references),
            no_anchor=chance(data.drop_anchor),
            noise=torch.randn(4, *self.cache.shape, generator=g),
        )


def artv_config(table: ArtvModelTable, base: Base) -> ArtvConfig:
    """The configuration of the trained parts for this base. Raises ConfigError for sizes that do not fit together."""
    unet: Any = base.unet.config
    channels, blocks = base.config.unet_channels, len(base.config.unet_channels)
    heads = unet.attention_head_dim  # in spite of diffusers' name: the number of heads, for all blocks or per block
    mask = table.mask_channels or tuple(c // MASK_SHARE for c in channels)
    try:
        return ArtvConfig(
            block_channels=channels,
            attention=base.config.unet_attention,
            heads=table.heads or ((heads,) * blocks if isinstance(heads, int) else tuple(heads)),
            mask_channels=mask,
            mask_heads=table.mask_heads or tuple(max(1, c // HEAD_WIDTH) for c in mask),
            layers_per_block=base.config.unet_layers,
            context_dim=base.config.context,
            adapter_blocks=table.adapter_blocks,
            anchor=table.anchor,
            anchor_patch=table.anchor_patch,
            anchor_positions=table.anchor_positions,
            anchor_ff=table.anchor_ff,
            level_embedding=table.level_embedding,
            static=table.static,
            static_reference=table.static_reference,
        )
    except ValueError as error:
        raise ConfigError(f"[model]: {error}") from error


class RollPreview(Preview):
    """Previews during training: each prompt's video from the text alone, frame by frame."""

    task: ArtvTask

    def latents(self, prompts: list[str]) -> Tensor:
        table: Any = self.plan.samples
        settings = Settings.of(table)
        model = FrameModel(self.task.host, self.task.table)
        context, empty = self.task.context(prompts), self.task.context([""] * len(prompts))
        shape = (len(prompts), *self.task.cache.shape)
        return roll(model, context, empty, shape=shape, frames=table.columns, settings=settings)


def start_from(task: ArtvTask, start: str) -> None:
    """Load the weights of an ART-V file of the same sizes. The U-Net stays that of the base."""
    path = Path(start)
    file = checkpoint.load(path, expect=ARTV)
    state = task.artv.state_dict()
    mismatches = sorted(k for k in state if k not in file.weights or file.weights[k].shape != state[k].shape)
    extras = sorted(set(file.weights) - set(state))
    if mismatches or extras:
        raise misfit(path, (mismatches or extras)[0])
    task.artv.load_state_dict(file.weights)
    log.info("training starts from the weights of %s", path)


def prepare(plan: ArtvPlan, tokenizer: Path) -> tuple[ArtvTask, Base]:
    """The task of a config, ready to be trained, and its base. Reports errors before anything is computed."""
    base = bases.load(plan.base, tokenizer)
    cache = latents.for_training(plan.data, base.vae)
    task = ArtvTask(base, artv_config(plan.model, base), plan, cache)
    if plan.model.start:
        start_from(task, plan.model.start)
    return task, base


def preview(task: ArtvTask, base: Base, plan: ArtvPlan) -> RollPreview:
    """The previews during training."""
    return RollPreview(task, base.vae, plan)


def write(task: ArtvTask, average: Average, path: Path) -> None:
    """Write the averaged weights in half precision, and a trained U-Net into `unet.safetensors` next to them."""
    weights = _part(average, "artv.")
    header = task.header()
    unet = _part(average, "unet.")
    if unet:
        header["base"] = tensors_hash(unet)
        write_tensors(unet, path.with_name("unet.safetensors"), {"format": "pt", "base": task.base_hash})
        log.info("wrote %s, the U-Net that belongs to it", path.with_name("unet.safetensors"))
    config = task.artv.config.to_dict()
    checkpoint.save(path, system=ARTV, config=config, weights=weights, header=header)
    count, size = sum(v.numel() for v in weights.values()) / 1e6, path.stat().st_size / 1e6
    log.info("wrote %s: %.2f M weights, %.1f MB", path, count, size)


def _part(average: Average, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v.detach().half().cpu() for k, v in average.items() if k.startswith(prefix)}
