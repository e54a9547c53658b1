"""ART-V's masks on frames that are there: where it would copy the frame before, at each noise level.

Nothing here touches an ordinary run: each frame gets calls of the MODEL of its own, on a clone that is dropped.

Shapes: latents (f, c, h, w) of a video, frame 0 the anchor; masks (f - 1, k, h, w), of frame 1 and later.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ...artv.config import ArtvConfig
from ..views import watched
from .apply import apply_artv
from .checks import Given
from .files import LoadedArtv

WHAT = "ART-V masks"


def schedule_parts(count: int) -> list[float]:
    """Parts of the schedule, evenly, none at its ends.

    >>> schedule_parts(2)
    [0.25, 0.75]
    """
    return [(i + 0.5) / count for i in range(count)]


def seen_masks(
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
    """(f - 1, k, h, w) of IMAGE frames, with ComfyUI's progress bar; see `masks_of`."""
    latents = torch.cat([vae.encode(image[..., :3]).float().cpu() for image in images.split(1)])
    found = masks_of(model, artv, positive, latents, percents=percents, level=level, seed=seed)
    return torch.stack(list(watched(found, len(images) - 1)))


def as_images(masks: Tensor) -> Tensor:
    """Masks (f, k, h, w) as IMAGE (f * k, h, w, 3)."""
    return masks.flatten(0, 1).unsqueeze(-1).repeat(1, 1, 1, 3)


@torch.inference_mode()
def masks_of(
    model: Any, artv: LoadedArtv, positive: Any, latents: Tensor, *, percents: Sequence[float], level: int, seed: int
) -> Iterator[Tensor]:
    """(k, h, w) of each frame but the first: m at parts of the schedule, on the frame with noise added.

    latents: in the space of LATENT. level: of the noise on references and anchor. ValueError for a single frame, or an
    anchor that is no latent.
    """
    _check(artv.config, latents)
    sampling: Any = model.get_model_object("model_sampling")
    sigmas = torch.tensor([float(sampling.percent_to_sigma(percent)) for percent in percents] + [0.0])
    inwards = model.model.process_latent_in(latents)
    for frame in range(1, len(latents)):
        noise = torch.randn(4, *latents.shape[1:], generator=torch.Generator().manual_seed((seed + frame) % 2**64))
        given = Given(
            references=torch.stack([inwards[frame - 1], inwards[max(0, frame - 2)]]),
            anchor=inwards[0],
            level=level,
            noise=noise[1:],
        )
        yield _frame(model, artv, positive, given, inwards[frame : frame + 1], noise[:1], sigmas)


def _frame(
    model: Any, artv: LoadedArtv, positive: Any, given: Given, y: Tensor, noise: Tensor, sigmas: Tensor
) -> Tensor:
    found: list[Tensor] = []

    def look(denoiser: Any, x: Tensor, levels: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
        """A sampler that asks at every level, and leaves x as it is."""
        for sigma in levels[:-1]:
            denoiser(y.to(x) + sigma * noise.to(x), sigma * x.new_ones(1), **extra_args)
        return x

    patched = apply_artv(model, artv, given, trace=lambda _sigma, _condition, m: found.append(m[0, 0]))
    sampler, empty = comfy.samplers.KSAMPLER(look), torch.zeros_like(noise)
    comfy.sample.sample_custom(patched, noise, 1.0, sampler, sigmas, positive, positive, empty, disable_pbar=True)
    return torch.stack(found)


def _check(config: ArtvConfig, latents: Tensor) -> None:
    if len(latents) < 2:
        raise ValueError(f"{WHAT}: there is {len(latents)} frame; a mask needs the frame before, give two or more")
    if config.anchor != "latent":
        raise ValueError(f'{WHAT}: this file\'s anchor is {config.anchor} tokens; use a file whose anchor is "latent"')
