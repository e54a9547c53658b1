"""The training of VidRD's temporal-aware decoder (arXiv 2309.03549, section 3.4 and Eq. 9): Temp-Convs of a frozen VAE.

    L = rec L_rec + disc s w L_disc,   s = 0 before step disc_start, then 1;   w the adaptive weight

L_reg is omitted, because it is constant for a frozen encoder. The discriminator is trained together with the decoder,
in the same step and by the same optimizer, each with its own term. Clips are computed one by one, each with its own
random numbers for dropout and its own weight w, so that a step does not depend on the number of processes.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...evaluation.metrics.decoding import flicker, psnr
from ...model_patches import checkpoint
from ...model_patches.diffusers_host.vidrd_decoder import stages
from ...model_patches.systems import VIDRD_DECODER
from ...model_patches.vidrd import losses
from ...model_patches.vidrd.config import DecoderConfig
from ...model_patches.vidrd.decoder import TemporalDecoder, decode
from ..data import pictures
from ..data.latents import weights_hash
from ..data.order import row
from ..data.pictures import ClipSource, SpriteClips
from ..engine.loop import Average
from ..engine.task import SystemTask
from ..plans.errors import ConfigError
from ..plans.vidrd_decoder import DecoderLossTable, DecoderPlan
from . import bases
from .bases import Base
from .layers import seed_dropout
from .preview import averaged

log = logging.getLogger(__name__)
FILE = "temporal_decoder.safetensors"
HELD_OUT = 1_000_000  # drawn clips from this number on are never trained on
MEASURED = 16  # number of clips in the final measurement


class DecoderTask(SystemTask):
    """Trains the Temp-Convs (`temporal`), and the discriminator, which is not exported."""

    def __init__(self, vae: nn.Module, config: DecoderConfig, plan: DecoderPlan, clips: ClipSource) -> None:
        super().__init__()
        self.plan, self.clips = plan, clips
        self.temporal = TemporalDecoder(config)
        self.vae: Any = vae
        self.stages = stages(self.vae, config)
        loss = plan.loss
        self.judge = losses.PatchDiscriminator(width=loss.disc_width, layers=loss.disc_layers) if loss.disc else None
        self.perceptual = perceptual(loss)
        self.vae_hash = weights_hash(vae)

    def identity(self) -> dict[str, str]:
        return self.plan.settings() | {"base": self.vae_hash, "data": self.clips.digest}

    def base_network(self) -> nn.Module:
        return self.vae

    def frozen_hash(self) -> str:
        return weights_hash(self.vae)

    def draw(self, samples: list[int]) -> list[Tensor]:
        """The frames of each sample."""
        return [self.clip(k) for k in samples]

    def data_summary(self) -> str:
        data = self.plan.data
        return f"{len(self.clips)} clips of {data.frames} frames, {data.size} x {data.size} pixels"

    def first_sample(self) -> int:
        """The first sample with the discriminator."""
        return self.plan.loss.disc_start * self.plan.train.batch

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        rows = [self.terms(k) for k in samples]
        return {name: torch.stack([terms[name] for terms in rows]).mean() for name in rows[0]}

    def clip(self, k: int) -> Tensor:
        """The frames of sample k: (f, 3, H, W) in -1..1."""
        seed = self.plan.train.seed
        return self.clips.frames(row(seed, k, len(self.clips))).to(next(self.temporal.parameters()).device)

    def terms(self, k: int) -> dict[str, Tensor]:
        """The loss of sample k, and figures for the log."""
        plan, x = self.plan, self.clip(k)
        seed_dropout(plan.train.seed, k)
        y = self.reconstruct(x)
        rec, flicker_loss = losses.reconstruction(y, x, self.perceptual), flicker(y, x)
        figures = {"rec": rec.detach(), "psnr": psnr(y, x).detach(), "flicker": flicker_loss.detach()}
        loss = plan.loss.rec * rec + plan.loss.flicker * flicker_loss
        if self.judge is None:
            return {"loss": loss, **figures}
        step = k // plan.train.batch
        s = losses.started(step, plan.loss.disc_start)
        generator = losses.generator_hinge(self.judge.frozen(y))
        weight = losses.adaptive_weight(rec, generator, self.temporal.layers()[-1].last)
        hinge = losses.discriminator_hinge(self.judge(x), self.judge(y.detach()))
        loss = loss + plan.loss.disc * s * weight * generator + s * hinge
        return {"loss": loss, **figures, "disc": generator.detach(), "disc_weight": weight, "judge": hinge.detach()}

    def reconstruct(self, x: Tensor, *, plain: bool = False) -> Tensor:
        """Encode and decode frames (f, 3, H, W) in -1..1. plain: with the autoencoder's own decoder."""
        with torch.no_grad():
            z = self.vae.encode(x).latent_dist.mean
        if plain:
            return self.vae.decode(z).sample
        self.temporal.train(torch.is_grad_enabled())
        return decode(self.stages, self.temporal.layers(), z, len(z))


def perceptual(table: DecoderLossTable) -> losses.Perceptual:
    """The perceptual term of a config. Raises ConfigError when its weights do not exist."""
    if table.perceptual == "gradient":
        return losses.gradient_difference
    if not Path(table.lpips).is_file():
        raise ConfigError(
            f"loss.lpips is {table.lpips!r}; give a TorchScript file of LPIPS for two images in -1..1, or set "
            'loss.perceptual = "gradient"'
        )
    network = torch.jit.load(table.lpips, map_location="cpu").eval().requires_grad_(False)
    return lambda y, x: network.to(y.device)(y, x).mean()


def decoder_config(plan: DecoderPlan, base: Base) -> DecoderConfig:
    """The configuration of the Temp-Convs for the autoencoder of this base."""
    return DecoderConfig(
        block_channels=base.config.vae_channels,
        layers_per_block=base.config.vae_layers,
        conv_layers=plan.model.conv_layers,
        dropout=plan.model.dropout,
        group_norm=plan.model.group_norm,
        frames=plan.data.frames,
    )


def prepare(plan: DecoderPlan, tokenizer: Path) -> tuple[DecoderTask, Base]:
    """The task of a config, ready to be trained, and its base. Reports errors before anything is computed."""
    base = bases.load(plan.base, tokenizer)
    return DecoderTask(base.vae, decoder_config(plan, base), plan, pictures.of(plan.data)), base


def preview(_task: DecoderTask, _base: Base, _plan: DecoderPlan) -> None:
    """There are no previews during training; the log has the figures."""


@torch.no_grad()
def measure(task: DecoderTask, clips: ClipSource) -> dict[str, float]:
    """PSNR and flicker of a few clips, with the Temp-Convs and with the autoencoder alone."""
    figures: dict[str, list[Tensor]] = {}
    for i in range(min(MEASURED, len(clips))):
        x = clips.frames(i).to(next(task.temporal.parameters()).device)
        for name, plain in (("", False), ("_plain", True)):
            y = task.reconstruct(x, plain=plain)
            figures.setdefault(f"psnr{name}", []).append(psnr(y, x))
            figures.setdefault(f"flicker{name}", []).append(flicker(y, x))
    return {name: float(torch.stack(values).mean()) for name, values in figures.items()}


def write(task: DecoderTask, average: Average, path: Path) -> None:
    """Write the averaged Temp-Convs in half precision, without the discriminator, and log their PSNR and flicker."""
    names = {k: k.removeprefix("temporal.") for k in average if k.startswith("temporal.")}
    weights = {name: average[k].detach().half() for k, name in names.items()}
    plan, config = task.plan, task.temporal.config
    header = {
        "base": task.vae_hash,
        "step": str(plan.train.steps),
        "frames": str(plan.data.frames),
        "loss": asdict(plan.loss),
    }
    system = VIDRD_DECODER
    checkpoint.save(path, system=system, config=config.to_dict(), weights=weights, header=header)
    count = sum(v.numel() for v in weights.values()) / 1e6
    log.info("wrote %s: %.2f M weights; the autoencoder is unchanged", path, count)
    held_out = SpriteClips(MEASURED, plan.data.frames, plan.data.size, first=HELD_OUT)
    with averaged(task, average):
        figures = measure(task, task.clips if plan.data.videos else held_out)
    log.info("%s", ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
