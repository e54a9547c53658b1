"""The code that the three render nodes share: samplers, sigmas, seeds, sizes, and the decoding of a clip."""

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
    """The seed for the noise of one clip, so that no clip needs the noise of earlier clips. Clip 0 has `seed` itself.

    >>> clip_seed(7, 0), clip_seed(7, 1) == clip_seed(7, 1), clip_seed(7, 1) == clip_seed(8, 1)
    (7, True, False)
    """
    if clip == take == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {clip} {take}".encode()).digest()[:8], "big")


def sampler_seed(seed: int) -> int:
    """The seed that a sampler gets. Some of ComfyUI's samplers add 1 to it, and 2^64 is no seed."""
    return min(seed, 2**64 - 2)


def check_finite(latents: Tensor, place: str, setting: str) -> None:
    """ValueError if sampled latents contain NaN or infinite values. place: the node and the clip; setting: what may be
    too large."""
    if not latents.isfinite().all():
        raise ValueError(
            f"{place} contains NaN or infinite values; everything before it is saved. Lower {setting} or the weights "
            "in prompts, use another sampler, or run ComfyUI with --force-fp32 (--fp32-vae if an image is the first "
            "frame)"
        )


def decoded(vae: Any, latents: Tensor) -> Iterator[Tensor]:
    """Frames in parts, each (k, H, W, 3) in 0..1.

    An image VAE decodes one frame at a time: ComfyUI's batch size depends on the free memory, and the rounding error
    depends on the batch size. A temporal decoder streams the clip, in parts of up to its own size. ValueError if a
    frame contains NaN or infinite values.
    """
    single = map(vae.decode, latents.split(1))
    for images in vae.decode_stream([latents]) if isinstance(vae, TemporalVAE) else single:
        frames = images[..., :3].float().cpu()
        if not frames.isfinite().all():
            raise ValueError(
                "decoding: a frame contains NaN or infinite values after the VAE; everything before it is saved. Run "
                "ComfyUI with --fp32-vae, or connect another VAE"
            )
        yield frames.clamp(0, 1)


def as_bytes(parts: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same frames as uint8, until the user cancels."""
    for images in parts:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield images.mul(255).round().to(torch.uint8)


def sampler_of(sampler: Any) -> Any:
    """ComfyUI's SAMPLER of this name; a SAMPLER is returned unchanged."""
    return comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler


def levels_of(model: Any, sampler: Any, scheduler: str, steps: int, sigmas: Tensor | None = None) -> Tensor:
    """The sigmas of the steps, (steps + 1,): SIGMAS if they are connected, otherwise those of the scheduler.

    With the name of a sampler they equal those of the KSampler node, with a SAMPLER those of the BasicScheduler node.
    ValueError for SIGMAS that a sampler cannot use: see `checked_levels`.
    """
    if sigmas is not None:
        return checked_levels(sigmas)
    if isinstance(sampler, str):
        return comfy.samplers.KSampler(model, steps, torch.device("cpu"), sampler, scheduler).sigmas
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def checked_levels(sigmas: Tensor) -> Tensor:
    """SIGMAS on the CPU. ValueError unless they are two or more finite numbers that decrease."""
    levels = sigmas.detach().float().cpu()
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(
            f"sigmas: the shape is {tuple(levels.shape)}, but a list of two or more noise levels is needed, one more "
            "than there are steps; connect a node such as BasicScheduler"
        )
    if not levels.isfinite().all() or (levels.diff() >= 0).any() or levels[-1] < 0:
        raise ValueError(
            f"sigmas: the noise levels are {[round(level, 4) for level in levels.tolist()]}, but they must be finite, "
            "decrease from step to step and end at 0 or above; connect a node such as BasicScheduler"
        )
    return levels


def latent_shape(model: Any, vae: Any, size: tuple[int, int]) -> tuple[int, int, int]:
    """(c, h, w) of a frame's latent. size: (height, width) in pixels. ValueError if the VAE cannot decode to it."""
    form, ratio = model.get_model_object("latent_format"), vae.spacial_compression_decode()
    if form.latent_dimensions != 2:
        raise ValueError(
            "long video: this MODEL is a video model, but an image model with a motion model is needed; load a Stable "
            "Diffusion checkpoint and connect Apply Motion Model"
        )
    height, width = size
    if height % ratio or width % ratio:
        fit = [round(side / ratio) * ratio or ratio for side in (width, height)]
        raise ValueError(
            f"long video: the size is {width} x {height} pixels, but the VAE needs multiples of {ratio}; use "
            f"{fit[0]} x {fit[1]}"
        )
    return form.latent_channels, height // ratio, width // ratio


def latent_size(latent: dict[str, Any], vae: Any) -> tuple[int, int]:
    """(height, width) of a LATENT in pixels: for an empty one the size set on its node, otherwise the decoded size."""
    samples = latent["samples"]
    ratio = vae.spacial_compression_decode()
    if not samples.any():
        ratio = latent.get("downscale_ratio_spacial") or ratio
    return samples.shape[-2] * ratio, samples.shape[-1] * ratio
