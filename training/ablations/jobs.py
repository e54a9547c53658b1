"""Sampling of clips with a trained model on the pocket: once, into files, divided among processes."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from time import monotonic

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

from ...evaluation.judges.video_judge import FRAMES
from ...model_patches import checkpoint
from ...model_patches.core.levels import alpha_bars
from ...model_patches.diffusers_host import harivo, vidrd
from ...model_patches.diffusers_host.vidrd_decoder import stages
from ...model_patches.files import write_tensors
from ...model_patches.harivo import mitigating
from ...model_patches.pocket import SCALE
from ...model_patches.systems import DREAMVIDEO, HARIVO, MOTION, VIDRD, VIDRD_DECODER
from ...model_patches.vidrd.config import DecoderConfig, VidrdConfig
from ...model_patches.vidrd.decoder import TemporalDecoder, decode
from ...model_patches.vidrd.model import VidrdModel
from ..data import sprites
from ..engine import logs
from ..engine.loop import sample_generator
from ..plans.common import BaseTable
from ..sampling.ddim import BeforeStep, Guide, ddim
from ..systems import bases
from ..systems.loading import harivo_of, levels_of
from ..systems.preview import decoded

log = logging.getLogger(__name__)

MOTIONS = ("right", "left", "up", "down", "still")
GUIDANCE = 7.5


@dataclass(frozen=True, kw_only=True)
class Job:
    """Some prompts and a model that samples them, in one process, into one file. A subclass defines the sampling."""

    model: Path
    file: Path
    seed: int
    steps: int  # DDIM steps
    first: int  # number of the first held-out prompt
    count: int  # number of prompts
    tokenizer: Path

    def prompts(self) -> list[sprites.Clip]:
        return sprites.held_out(self.count, motions=MOTIONS, first=self.first)

    def settings(self) -> list[object]:
        """Everything that determines the clips besides the weights of the model."""
        return [self.seed, self.steps, self.first, self.count, GUIDANCE, FRAMES]

    def clips(self) -> Tensor:
        """The clips, (n, f, 3, 64, 64) bytes, where f is FRAMES or a multiple of it."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the file."""
        return {"clips": self.clips()}

    def digest(self) -> str:
        """A digest of everything that determines the clips; they are sampled again when it changes."""
        return hashlib.sha256(json.dumps([fingerprint(self.model), *self.settings()]).encode()).hexdigest()

    def done(self) -> bool:
        """Whether the file exists and was made with the same model and settings."""
        if not self.file.exists():
            return False
        with safe_open(self.file, "pt") as file:
            return (file.metadata() or {}).get("digest") == self.digest()


@dataclass(frozen=True, kw_only=True)
class ClipJob(Job):
    """One clip for each prompt."""

    alpha: float  # of the mitigating gradient; 0 means none

    def settings(self) -> list[object]:
        return [self.alpha, *super().settings()]

    def clips(self) -> Tensor:
        model, guidance = pocket_model(self.model, self.tokenizer), guide(self.alpha) if self.alpha else None
        latents = [
            model.draw(prompt, noise_of(self.seed, number), steps=self.steps, guide=guidance)
            for number, prompt in enumerate(self.prompts(), self.first)
        ]
        return torch.cat([model.pictures(x) for x in latents])


def noise_of(seed: int, prompt: int, clip: int = 0) -> Tensor:
    """The initial noise (1, f, 4, h, w) of a clip of a held-out prompt."""
    return torch.randn(1, FRAMES, 4, 16, 16, generator=sample_generator(seed, prompt, clip))


def fingerprint(path: Path) -> str:
    """A hash of a file's config and weights; equal weights may be stored in different bytes."""
    digest = hashlib.sha256()
    with safe_open(path, "pt") as file:
        digest.update((file.metadata() or {}).get("config", "").encode())
        for name in sorted(file.keys()):
            digest.update(name.encode() + file.get_tensor(name).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def draw_all(jobs: Iterable[Job], processes: int) -> None:
    """Run all jobs whose files do not exist yet; with `processes` = 1 in this process, as a new one imports much."""
    pending, start_time = [job for job in jobs if not job.done()], monotonic()
    for number, _ in enumerate(_finished(pending, processes), 1):
        eta = (monotonic() - start_time) / number * (len(pending) - number)
        log.info("clips: %d of %d files  ETA %.0f min", number, len(pending), eta / 60)


def _finished(jobs: list[Job], processes: int) -> Iterator[None]:
    """Run the jobs; yields after each of them."""
    if processes == 1:
        yield from map(draw, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_set_up_worker) as pool:
        for future in as_completed([pool.submit(draw, job) for job in jobs]):
            yield future.result()


def _set_up_worker() -> None:
    """Set up logging in a worker process, and exit when the parent process ends, which a signal may kill."""
    logs.configure()
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def read_clips(jobs: Iterable[Job]) -> Iterator[Tensor]:
    """The clips in the files of jobs, (f, 3, 64, 64) in 0..1 each, in the order of the prompts."""
    for job in jobs:
        with safe_open(job.file, "pt") as file:
            yield from file.get_tensor("clips").float() / 255


@torch.no_grad()
def draw(job: Job) -> None:
    """Sample the clips of a job and write its file, on one thread, so that the number of processes changes no bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        write_tensors(job.tensors(), job.file, {"digest": job.digest()})
    finally:
        torch.set_num_threads(threads)


def guide(alpha: float) -> Guide:
    """The mitigating gradient as a guidance of DDIM, for clips (b, f, 4, h, w)."""
    settings = mitigating.Config(alpha=alpha)

    def mitigate(x_0: Tensor, eps: Tensor, sigma: float) -> Tensor:
        frames = x_0.shape[1]
        return mitigating.mitigate(x_0.flatten(0, 1), eps.flatten(0, 1), sigma, settings, frames=frames)[0].view_as(x_0)

    return mitigate


class PocketModel:
    """The pocket model with a trained motion, HARIVO or VidRD model, or with the motion model of a DreamVideo file."""

    def __init__(self, path: Path, tokenizer: Path) -> None:
        self.base = bases.load(BaseTable(), tokenizer)
        self.handle, self.levels = _attach_file(self.base.unet, path)
        self.empty = self.context("")

    def context(self, text: str) -> Tensor:
        return self.base.text(self.base.ids([text])).last_hidden_state

    def draw(
        self,
        prompt: sprites.Clip,
        noise: Tensor,
        *,
        steps: int,
        guide: Guide | None = None,
        before_step: BeforeStep | None = None,
    ) -> Tensor:
        """Sample the latents (1, f, 4, h, w) of a clip."""
        context, options = self.context(sprites.caption(prompt)), {"steps": steps, "guidance": GUIDANCE}
        options |= {"guide": guide, "before_step": before_step}
        return ddim(self.handle.predict, noise, context, self.empty, self.levels, **options)

    def pictures(self, latents: Tensor) -> Tensor:
        """Decoded clips: latents (n, f, 4, h, w) -> (n, f, 3, 64, 64) bytes."""
        return (decoded(self.base.vae, latents, latents.shape[1]) * 255).round().byte()

    def decode_with(self, latents: Tensor, decoder: TemporalDecoder) -> Tensor:
        """One clip (f, 4, h, w), decoded with VidRD's temporal-aware decoder: (f, 3, H, W) in -1..1."""
        return decode(stages(self.base.vae, decoder.config), decoder.layers(), latents / SCALE, len(latents))


def _attach_file(unet: UNet2DConditionModel, path: Path) -> tuple[harivo.Handle | vidrd.Handle, Tensor]:
    """Attach the model of a file to the U-Net. Returns its handle, and alpha_bar of the timesteps it was trained on."""
    kinds = (HARIVO, MOTION, VIDRD, DREAMVIDEO)
    file = checkpoint.motion_of(checkpoint.load(path, expect=kinds))
    if file.system != VIDRD:
        model = harivo_of(file)
        return harivo.attach(unet, model), levels_of(model)
    config = VidrdConfig.from_dict(file.config)
    model = VidrdModel(config).eval().requires_grad_(False)
    model.load_state_dict({name: value.float() for name, value in file.weights.items()})
    return vidrd.attach(unet, model), alpha_bars(config.beta_schedule or "scaled_linear").float()


@lru_cache(maxsize=1)
def temporal_decoder(path: Path) -> TemporalDecoder:
    """The temporal-aware decoder of a file."""
    file = checkpoint.load(path, expect=VIDRD_DECODER)
    decoder = TemporalDecoder(DecoderConfig.from_dict(file.config)).eval().requires_grad_(False)
    decoder.load_state_dict({name: value.float() for name, value in file.weights.items()})
    return decoder


pocket_model = lru_cache(maxsize=1)(PocketModel)
