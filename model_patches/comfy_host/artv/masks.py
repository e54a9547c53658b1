"""ART-V's masks on existing frames: where it would copy the previous frame, at each noise level.

Ordinary runs are not affected: the masks of each frame come from separate calls of the MODEL on a temporary clone.

Shapes: latents (f, c, h, w) of a video, frame 0 the anchor; masks (f - 1, k, h, w), of frame 1 and later.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ...artv.config import ArtvConfig
from ..views import with_progress
from .apply import apply_artv
from .checks import FrameInputs
from .files import LoadedArtv

WHAT = "ART-V masks"


def schedule_parts(count: int) -> list[float]:
    """Evenly spaced points of the schedule, without its ends.

    >>> schedule_parts(2)
    [0.25, 0.75]
    """
    return [(i + 0.5) / count for i in range(count)]


def image_masks(
    model: Any,
    artv: LoadedArtv,
    vae: Any,
    positive: Any,
    images: Tensor,
    *,
    percents: Sequence[float],
    level: int,
    seed: int,
) -> Tensor:
    """Masks (f - 1, k, h, w) of IMAGE frames, with ComfyUI's progress bar; see `masks_of`."""
    latents = torch.cat([vae.encode(image[..., :3]).float().cpu() for image in images.split(1)])
    masks = masks_of(model, artv, positive, latents, percents=percents, level=level, seed=seed)
    return torch.stack(list(with_progress(masks, len(images) - 1)))


def as_images(masks: Tensor) -> Tensor:
    """Masks (f, k, h, w) as IMAGE (f * k, h, w, 3)."""
    return masks.flatten(0, 1).unsqueeze(-1).repeat(1, 1, 1, 3)


@torch.inference_mode()
def masks_of(
    model: Any, artv: LoadedArtv, positive: Any, latents: Tensor, *, percents: Sequence[float], level: int, seed: int
) -> Iterator[Tensor]:
    """m (k, h, w) for each frame but the first, on the frame with noise added, at points of the schedule.

    latents: in the space of LATENT. level: noise level of references and anchor. ValueError for a single frame, or for
    a model whose anchor is not a latent.
    """
    _check(artv.config, latents)
    sampling: Any = model.get_model_object("model_sampling")
    sigmas = torch.tensor([float(sampling.percent_to_sigma(percent)) for percent in percents] + [0.0])
    samples = model.model.process_latent_in(latents)
    for frame in range(1, len(latents)):
        noise = torch.randn(4, *latents.shape[1:], generator=torch.Generator().manual_seed((seed + frame) % 2**64))
        inputs = FrameInputs(
            references=torch.stack([samples[frame - 1], samples[max(0, frame - 2)]]),
            anchor=samples[0],
            level=level,
            noise=noise[1:],
        )
        yield _frame(model, artv, positive, inputs, samples[frame : frame + 1], noise[:1], sigmas)


def _frame(
    model: Any, artv: LoadedArtv, positive: Any, inputs: FrameInputs, y: Tensor, noise: Tensor, sigmas: Tensor
) -> Tensor:
    masks: list[Tensor] = []

    def ask_at_levels(denoiser: Any, x: Tensor, levels: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
        """A sampler that calls the model at every level and returns x unchanged."""
        for sigma in levels[:-1]:
            denoiser(y.to(x) + sigma * noise.to(x), sigma * x.new_ones(1), **extra_args)
        return x

    patched = apply_artv(model, artv, inputs, trace=lambda _sigma, _condition, m: masks.append(m[0, 0]))
    sampler, empty = comfy.samplers.KSAMPLER(ask_at_levels), torch.zeros_like(noise)
    comfy.sample.sample_custom(patched, noise, 1.0, sampler, sigmas, positive, positive, empty, disable_pbar=True)
    return torch.stack(masks)


def _check(config: ArtvConfig, latents: Tensor) -> None:
    if len(latents) < 2:
        raise ValueError(
            f"{WHAT}: the input has {len(latents)} frame, but a mask needs the previous frame; give two or more frames"
        )
    if config.anchor != "latent":
        raise ValueError(
            f'{WHAT}: the anchor of this file is {config.anchor} tokens; use a file whose anchor is "latent"'
        )
