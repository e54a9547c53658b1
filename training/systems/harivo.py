"""HARIVO's training (arXiv 2410.07763, Eq. 1 to 5): L = L_DSM + l1 L_reg + l2 L_TRS + l3 L_DC on a frozen image model.

The frames of a clip share the timestep and the caption; their noise is independent. One forward of the complete model
gives eps, the middle features (L_DC) and the self-attention maps of the up blocks (L_TRS); L_reg needs one more
forward, of the image model alone on the mapped input. A term with weight 0 is not computed, and a disabled part does
not exist; this gives the rows of the paper's ablation.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...model_patches import checkpoint
from ...model_patches.core.config import MotionConfig
from ...model_patches.diffusers_host.harivo import Maps, attach
from ...model_patches.harivo import losses
from ...model_patches.harivo.config import HarivoConfig, MappingConfig, TokenConfig
from ...model_patches.harivo.model import HarivoModel
from ...model_patches.harivo.projection import ProjectionHead
from ...model_patches.systems import HARIVO, MOTION
from ..data import latents
from ..data.latents import Latents, weights_hash
from ..engine.loop import Average, gather_samples
from ..engine.task import WeightedTask
from ..plans.common import BUNDLED, POCKET
from ..plans.harivo import HarivoModelTable, HarivoPlan
from . import bases
from .bases import TOKENS, Base
from .clip_task import ClipTask, NoisedClips, misfit
from .preview import Preview

log = logging.getLogger(__name__)
FILE = "harivo.safetensors"


@dataclass(frozen=True)
class Batch(NoisedClips):
    """The inputs of the model and of the losses."""

    pairs: Tensor  # (b, 2), numbers of two frames of each clip, for L_DC
    reg_frames: Tensor  # (b, n), numbers of frames of each clip, for L_reg


class HarivoTask(ClipTask[HarivoPlan], WeightedTask):
    """Trains the HARIVO model, and the projection head of L_DC, which is not exported."""

    def __init__(self, base: Base, config: HarivoConfig, plan: HarivoPlan, cache: Latents) -> None:
        super().__init__(base, plan, cache)
        self.harivo = HarivoModel(config)
        self.handle = attach(self.unet, self.harivo)
        self.weights = {"dsm": 1.0, "reg": plan.loss.reg, "trs": plan.loss.trs, "dc": plan.loss.dc}
        self.head, self.queue = None, None
        if plan.loss.dc:
            features = middle_features(base, cache)
            self.head = ProjectionHead(features)
            self.queue = losses.Queue(plan.loss.queue, features[0])
        self.pending: list[tuple[Tensor, Tensor]] = []

    def frozen_hash(self) -> str:
        """A hash of the image U-Net."""
        return weights_hash(self.unet)

    def part_of(self, parameter: str) -> str:
        return super().part_of(parameter.removeprefix("harivo."))

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        terms, figures = self.terms(samples)
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}, **figures}

    def terms(self, samples: list[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The terms with a weight, each as a mean over the clips and without its weight, and figures for the log."""
        batch = self.draw(samples)
        eps = self._video(batch)
        error = losses.denoising(eps, batch.noise)
        terms = {"dsm": (self.level_weight(batch.alpha_bar) * error).mean()}
        if self.weights["trs"]:
            changes = [self.handle.maps[layer] for layer in sorted(self.handle.maps)]
            terms["trs"] = losses.temporal_self_attention(changes).mean()
        if self.weights["dc"]:
            terms["dc"] = self._contrast(batch).mean()
        if self.weights["reg"]:
            terms["reg"] = self._regulariser(batch, eps).mean()
        return terms, self.figures(error, batch.t)

    def warm_up(self, samples: list[int]) -> None:
        """Fill the queue of L_DC with features of other samples."""
        if self.queue is None:
            return
        for i in range(1, 3):
            with torch.no_grad():
                self.terms([k + i * len(samples) for k in samples])
            self.after_step(True)

    def extras(self) -> dict[str, Tensor]:
        return {} if self.queue is None else {f"queue/{n}": v for n, v in self.queue.state_dict().items()}

    def after_step(self, applied: bool) -> None:
        """Add the features of all processes to the queue, in the order of the samples."""
        if self.queue is None or not applied:
            self.pending.clear()
            return
        features, rows = (gather_samples(torch.cat(parts)) for parts in zip(*self.pending, strict=True))
        self.queue.push(features.flatten(0, 1), rows.repeat_interleave(2))
        self.pending.clear()

    def draw(self, samples: list[int]) -> Batch:
        """The inputs for the samples; a pure function of the seed and their numbers."""
        f, plan = self.plan.data.frames, self.plan
        clips, generators = self.noised(samples)
        pairs, reg_frames = [], []
        for g in generators:
            pairs.append(torch.randperm(f, generator=g)[:2])
            reg_frames.append(torch.randperm(f, generator=g)[: plan.loss.reg_frames or f].sort().values)
        device = self.device
        numbers = {"pairs": torch.stack(pairs).to(device), "reg_frames": torch.stack(reg_frames).to(device)}
        return Batch(**vars(clips), **numbers)

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """eps of the complete model: x_t (b, f, 4, h, w), t (b,), context (b, 77, d) -> like x_t."""
        return self.handle.predict(x_t, t, context)

    def _video(self, batch: Batch) -> Tensor:
        """V(x_t, t, y), (b, f, 4, h, w); the handle also stores the features and maps that the losses need."""
        f, loss = self.plan.data.frames, self.plan.loss
        self.handle.keep_middle = bool(self.weights["dc"])
        self.handle.keep_maps = None
        if self.weights["trs"]:
            self.handle.keep_maps = Maps(
                queries=loss.trs_queries or None,
                stream=lambda q, k: losses.streamed_change(q, k, f, head_mean=loss.trs_heads == "mean"),
            )
        eps = self.predict(batch.x_t, batch.t, batch.context)
        self.handle.keep_maps, self.handle.keep_middle = None, False
        return eps

    def _regulariser(self, batch: Batch, eps: Tensor) -> Tensor:
        """L_reg of each clip. The image model, without our parts, processes the mapped latents frame by frame."""
        b, n = batch.reg_frames.shape
        x = batch.x_t.flatten(0, 1)
        if self.harivo.mapping is not None:
            x = self.harivo.mapping(x, self.plan.data.frames)
        self.handle.frames = 1
        x, video = (_frames_of(v, batch.reg_frames) for v in (x.unflatten(0, (b, -1)), eps))
        t, context = batch.t.repeat_interleave(n), batch.context.repeat_interleave(n, 0)
        image = self.unet(x.flatten(0, 1), t, context).sample.unflatten(0, (b, n))
        time = batch.t / len(self.table)
        softening: losses.Softening = self.plan.loss.softening  # type: ignore[assignment]
        return losses.regulariser(video, image, alpha_bar=batch.alpha_bar, time=time, softening=softening)

    def _contrast(self, batch: Batch) -> Tensor:
        """L_DC of each clip; also stores the features for the queue."""
        assert self.head is not None
        assert self.queue is not None
        assert self.handle.middle is not None
        h = _frames_of(self.handle.middle.unflatten(0, (len(batch.rows), -1)), batch.pairs)
        z = self.head(h.flatten(0, 1)).unflatten(0, (-1, 2))
        self.pending.append((z.detach().float(), batch.rows))
        same_video = self.queue.same_video(batch.rows)
        tau = self.plan.loss.tau
        return losses.decoupled_contrastive(z[:, 0], z[:, 1], self.queue.negatives(), same_video=same_video, tau=tau)


def middle_features(base: Base, cache: Latents) -> tuple[int, int, int]:
    """The shape (c, h, w) of the features of the U-Net's middle block for latents of the cache."""
    _, h, w = cache.shape
    for _ in base.config.unet_channels[1:]:
        h, w = (h + 1) // 2, (w + 1) // 2
    return base.config.unet_channels[-1], h, w


def harivo_config(table: HarivoModelTable, base: Base, frames: int) -> HarivoConfig:
    """The configuration of the trained parts for this base."""
    motion = MotionConfig(
        block_channels=base.config.unet_channels,
        layers_per_block=base.config.unet_layers,
        mid_block=table.mid_block,
        heads=table.heads,
        max_frames=table.max_frames,
        group_norm=table.group_norm,
        beta_schedule=table.beta_schedule,
        beta_start=table.beta_start,
        beta_end=table.beta_end,
    )
    mapping = MappingConfig(width=table.mapping_width, heads=table.mapping_heads, max_frames=table.max_frames)
    tokens = None
    if table.tokens:
        tokens = TokenConfig(
            context_dim=base.config.context,
            context_length=TOKENS,
            tokens=table.tokens,
            frames=frames,
            layers=table.token_layers,
            kernel=table.token_kernel,
        )
    return HarivoConfig(motion=motion, mapping=mapping if table.mapping else None, tokens=tokens)


def start_from(model: HarivoModel, start: str) -> None:
    """Load the weights of a motion file, or those parts of a HARIVO file that this model has as well."""
    path = POCKET / "motion.safetensors" if start == BUNDLED else Path(start)
    file = checkpoint.load(path, expect=(MOTION, HARIVO))
    prefix = "temporal." if file.system == MOTION else ""
    state = model.state_dict()
    weights = {f"{prefix}{k}": v for k, v in file.weights.items() if f"{prefix}{k}" in state}
    mismatches = sorted(k for k, v in weights.items() if v.shape != state[k].shape)
    missing = sorted({k for k in state if k.startswith("temporal.")} - set(weights))
    if mismatches or missing:
        raise misfit(path, (mismatches or missing)[0])
    model.load_state_dict(weights, strict=False)
    log.info("training starts from the weights of %s", path)


def prepare(plan: HarivoPlan, tokenizer: Path) -> tuple[HarivoTask, Base]:
    """The task of a config, ready to be trained, and its base. Reports errors before anything is computed."""
    base = bases.load(plan.base, tokenizer)
    cache = latents.for_training(plan.data, base.vae)
    task = HarivoTask(base, harivo_config(plan.model, base, plan.data.frames), plan, cache)
    if plan.model.start:
        start_from(task.harivo, plan.model.start)
    return task, base


def preview(task: HarivoTask, base: Base, plan: HarivoPlan) -> Preview:
    """The previews during training."""
    return Preview(task, base.vae, plan)


def write(task: HarivoTask, average: Average, path: Path) -> None:
    """Write the averaged weights in half precision, without the projection head, and a header with the settings."""
    weights = {k: v.detach().half() for k, v in task.harivo.state_dict().items()}
    weights |= {k.removeprefix("harivo."): v.half() for k, v in average.items() if k.startswith("harivo.")}
    config = task.harivo.config.to_dict()
    checkpoint.save(path, system=HARIVO, config=config, weights=weights, header=task.header())
    log.info("wrote %s (%.1f MB); the base is unchanged (%s)", path, path.stat().st_size / 1e6, task.base_hash)


def _frames_of(values: Tensor, index: Tensor) -> Tensor:
    """Select frames of clips: (b, f, ...), (b, n) -> (b, n, ...)."""
    return values[torch.arange(len(index), device=index.device).unsqueeze(1), index]
