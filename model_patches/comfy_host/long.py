"""A long video's clips with ComfyUI's samplers: noise keyed by seed and clip, history from a file, frames in parts.

Shapes: N frames of a clip; latents (N, c, h, w); frames (k, H, W, 3).
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..vidrd.reuse import History, next_noise
from .fingerprint import of_machine, of_model, of_values
from .frames import Part, check_rows
from .prompts import PromptSchedule
from .reuse import ClipSampler, ReuseConfig
from .vidrd_decoder import TemporalVAE

VERSION = 1  # of what is done here to the numbers: another one cannot continue a video
SAMPLERS = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS


def clip_seed(seed: int, clip: int, take: int = 0) -> int:
    """The seed of one clip's noise, so that no clip needs the noise of the ones before. Clip 0 has the seed itself.

    >>> clip_seed(7, 0), clip_seed(7, 1) == clip_seed(7, 1), clip_seed(7, 1) == clip_seed(8, 1)
    (7, True, False)
    """
    if clip == take == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {clip} {take}".encode()).digest()[:8], "big")


def make_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """ComfyUI's CFGGuider, as its KSampler uses it. ValueError when it would guide away from nothing."""
    if not negative and cfg != 1:
        raise ValueError(f"long video: cfg is {cfg:g} without a negative condition; connect one, or set cfg to 1")
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or [], negative or [])
    guider.set_cfg(cfg)
    return guider


class _OneClip:
    """A SAMPLER for one clip of a ClipSampler. It holds what the next clip needs, once it has run."""

    def __init__(self, clips: ClipSampler, before: History | None) -> None:
        self.clips, self.before = clips, before
        self.history: History | None = None

    def sample(self, *arguments: Any) -> Tensor:
        found, self.history = self.clips.sample(self.before, *arguments)
        return found


class LongVideo:
    """What a render is made with: see `rendering.loop.Work`, whose two functions are `sample` and `decode`.

    guider: ComfyUI's GUIDER; its MODEL and conditions are not changed. prompts: one per clip, in the place of the
    guider's positive text. size: (height, width) of the video in pixels. ValueError, before anything is sampled: a size
    that the VAE does not have, a sampler that cannot be replayed, more overlap than frames, no condition.
    """

    def __init__(
        self,
        guider: Any,
        vae: Any,
        *,
        sampler: str,
        scheduler: str,
        steps: int,
        seed: int,
        frames: int,
        size: tuple[int, int],
        config: ReuseConfig,
        step_noise: bool = False,
        prompts: PromptSchedule | None = None,
    ) -> None:
        config.check(frames)
        self.guider, self.vae, self.prompts = guider, vae, prompts
        self.seed, self.frames, self.config = seed, frames, config
        self.clips = ClipSampler(comfy.samplers.sampler_object(sampler), config, step_noise=step_noise)
        self.sigmas = levels_of(guider.model_patcher, sampler, scheduler, steps)
        self.shape = latent_shape(guider.model_patcher, vae, size)

    def check(self, clips: int) -> None:
        """ValueError when a condition is too short for so many clips."""
        check_rows(self.guider.original_conds, self.frames, clips * self.frames)

    def identity(self) -> dict[str, Any]:
        """What the latents depend on, besides the settings that the caller knows: hashes, levels, versions."""
        models = {"model": of_model(self.guider.model_patcher), "vae": of_model(self.vae.patcher)}
        if isinstance(self.vae, TemporalVAE):
            models["temporal decoder"] = of_model(self.vae.temporal.patcher)
        conditions = {role: of_values(values) for role, values in self.guider.original_conds.items()}
        if self.prompts is not None:
            models["clip"] = of_model(self.prompts.clip.patcher)
            conditions["prompts"] = of_values(list(self.prompts.lines))
        guider = {"kind": type(self.guider).__name__, "cfg": float(getattr(self.guider, "cfg", 1.0))}
        if hasattr(self.guider, "scales"):
            guider["scales"] = list(self.guider.scales)
        versions = {"long video": str(VERSION), **of_machine()}
        return {
            "models": models,
            "conditions": conditions,
            "guider": guider,
            "sigmas": self.sigmas.tolist(),
            "versions": versions,
        }

    def noise(self, clip: int, take: int, before: History | None) -> Tensor:
        """(N, c, h, w): FNR and PNS (Eq. 6 and 7) on noise of the clip's own seed."""
        empty = torch.zeros(self.frames, *self.shape)
        fresh: Any = comfy.sample.prepare_noise(empty, clip_seed(self.seed, clip, take))
        return fresh if before is None else next_noise(before.noise, fresh[None], self.config)[0]

    @torch.inference_mode()
    def sample(
        self, clip: int, take: int, before: dict[str, Tensor] | None, step: Callable[[float], None]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents of a clip, counted from 0, and the tensors of its history. step(share) after every step."""
        history = None if before is None else History.of(before)
        part = Part(clip * self.frames, (clip + 1) * self.frames)
        guider = part.guider(self.guider, self._conditions(clip))
        sampler = _OneClip(self.clips, history)
        found = guider.sample(
            self.noise(clip, take, history),
            torch.zeros(self.frames, *self.shape),
            sampler,
            self.sigmas,
            callback=lambda k, _x_0, _x, total: step((k + 1) / total),
            disable_pbar=True,
            seed=self._step_seed(clip, take),
        )
        assert sampler.history is not None
        return found.float().cpu(), sampler.history.tensors()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """uint8 frames of a clip, a few at a time."""
        yield from as_bytes(decoded(self.vae, latents))

    @torch.inference_mode()
    def pictures(self, latents: Tensor) -> Tensor:
        """(N, H, W, 3) in 0..1, of a clip."""
        return torch.cat(list(decoded(self.vae, latents)))

    def _conditions(self, clip: int) -> dict[str, list[dict[str, Any]]]:
        given = self.guider.original_conds
        if self.prompts is None:
            return given
        roles = getattr(self.guider, "text_roles", ("positive",))
        return given | {role: self.prompts.instead(given.get(role, ()), clip) for role in roles}

    def _step_seed(self, clip: int, take: int) -> int:
        """Of noise in the steps: as ReuseSampler has it."""
        return self.seed + clip if take == 0 else clip_seed(self.seed, clip, take)


def decoded(vae: Any, latents: Tensor) -> Iterator[Tensor]:
    """Frames in parts, each (k, H, W, 3) in 0..1.

    One at a time: how many ComfyUI decodes at once depends on the memory that is free, and the last bits on how many
    those are. A temporal decoder streams the clip, in parts of up to its own size.
    """
    alone = map(vae.decode, latents.split(1))
    for images in vae.decode_stream([latents]) if isinstance(vae, TemporalVAE) else alone:
        yield images[..., :3].float().cpu().clamp(0, 1)


def as_bytes(parts: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same as uint8, as long as nobody cancels."""
    for images in parts:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield images.mul(255).round().to(torch.uint8)


def levels_of(model: Any, sampler: str, scheduler: str, steps: int) -> Tensor:
    """The levels that the KSampler node takes."""
    return comfy.samplers.KSampler(model, steps, torch.device("cpu"), sampler, scheduler).sigmas


def latent_shape(model: Any, vae: Any, size: tuple[int, int]) -> tuple[int, int, int]:
    """(c, h, w) of a frame's latent. size: (height, width) in pixels. ValueError for one that the VAE does not have."""
    form, ratio = model.get_model_object("latent_format"), vae.spacial_compression_decode()
    if form.latent_dimensions != 2:
        raise ValueError(
            "long video: this MODEL makes videos by itself; clips that continue each other need an image model, such "
            "as Stable Diffusion, with a motion model"
        )
    height, width = size
    if height % ratio or width % ratio:
        fit = [round(side / ratio) * ratio or ratio for side in (width, height)]
        raise ValueError(
            f"long video: {width} x {height} pixels are no multiple of {ratio}, the VAE's step; use {fit[0]} x {fit[1]}"
        )
    return form.latent_channels, height // ratio, width // ratio


def latent_size(latent: dict[str, Any], vae: Any) -> tuple[int, int]:
    """(height, width) in pixels of a LATENT: of an empty one as its node meant it, else as the VAE decodes it."""
    samples = latent["samples"]
    ratio = vae.spacial_compression_decode()
    if not samples.any():
        ratio = latent.get("downscale_ratio_spacial") or ratio
    return samples.shape[-2] * ratio, samples.shape[-1] * ratio
