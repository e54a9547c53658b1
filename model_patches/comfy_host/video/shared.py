"""What the three render nodes share: samplers, seeds, sizes and decoded frames of a clip."""

import hashlib
from collections.abc import Iterator
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..vidrd.decoder import TemporalVAE

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


def sampler_of(sampler: Any) -> Any:
    """ComfyUI's SAMPLER for a name; a SAMPLER itself stays as it is."""
    return comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler


def levels_of(model: Any, sampler: Any, scheduler: str, steps: int, sigmas: Tensor | None = None) -> Tensor:
    """The noise levels of the steps, (steps + 1,): SIGMAS where they are connected, else those of a scheduler.

    For a sampler's name they are those of the KSampler node, for a SAMPLER those of the BasicScheduler node. ValueError
    for SIGMAS that no sampler can follow.
    """
    if sigmas is not None:
        return checked_levels(sigmas)
    if isinstance(sampler, str):
        return comfy.samplers.KSampler(model, steps, torch.device("cpu"), sampler, scheduler).sigmas
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def checked_levels(sigmas: Tensor) -> Tensor:
    """SIGMAS on the CPU. ValueError unless they are two or more finite numbers that fall."""
    levels = sigmas.detach().float().cpu()
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(
            f"sigmas: they have the shape {tuple(levels.shape)}; a list of two or more noise levels is needed, one "
            "more than there are steps, as BasicScheduler makes it"
        )
    if not levels.isfinite().all() or (levels.diff() >= 0).any() or levels[-1] < 0:
        raise ValueError(
            f"sigmas: noise levels must be finite, fall from step to step and end at 0 or above; these are "
            f"{[round(level, 4) for level in levels.tolist()]}"
        )
    return levels


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
