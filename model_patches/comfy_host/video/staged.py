"""DreamVideo's stages (arXiv 2312.03018, section 5.5) with ComfyUI's samplers: each has an image and a prompt.

A stage depends on its image, its prompt, and noise from its own seed. It does not depend on later stages, so an
interrupted video resumes with exactly the same frames. Each frame is decoded once and rounded to 8 bits, as it is in
the video file. The last frame of a stage, after rounding, is the image of the next stage.

Shapes: f frames of a stage; latents (f, c, h, w); pictures (n, H, W, 3), uint8 in files, otherwise from 0 to 1.
"""

from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import torch
from torch import Tensor

from ...core.pictures import FITS, fit, same_aspect
from ...dreamvideo.guidance import TEXT_FIRST
from ...dreamvideo.image import pixels
from ...dreamvideo.stages import REANCHOR, UNDER_NOISE, StagePlan, colours_of, parse_stages, reanchored
from ..base.fingerprint import of_model, of_values
from ..conditions.prompts import PromptSchedule
from ..dreamvideo.guider import DoubleConditionGuider, double_condition_guider
from ..dreamvideo.retention import Conditioning, LoadedBranch, apply_retention
from ..vidrd.decoder import TemporalVAE
from .shared import (
    SAMPLERS,
    SCHEDULERS,
    check_finite,
    clip_seed,
    decoded,
    latent_shape,
    levels_of,
    sampler_of,
    sampler_seed,
)

__all__ = [
    "FITS",
    "REANCHOR",
    "SAMPLERS",
    "SCHEDULERS",
    "UNDER_NOISE",
    "StagePlan",
    "StagedVideo",
    "fit_image",
    "parse_stages",
]

VERSION = 1  # of the computation: a video that another version began cannot be resumed
LABEL = "staged video"
SAMPLING = 0.9  # share of the work on a stage; the rest is decoding
CHANGES = {"crop": "it is cropped at its centre", "pad": "white edges are added", "stretch": "it is stretched"}
State = dict[str, Tensor]


class StagedVideo:
    """The functions of a render (see `rendering.loop.Work`) in which every clip is a stage. The pictures of its frames
    are stored, not their latents.

    image: (1, H, W, 3) at the size of the video, None for the null image. scales: those of text and image, and their
    order. size: (height, width) in pixels. negative: the null text, None for an empty prompt. reanchor: one of
    REANCHOR. under_noise: one of UNDER_NOISE. sampler: a name or a SAMPLER. sigmas: SIGMAS, which replace scheduler
    and steps.

    ValueError, before anything is sampled, if the branch is for another kind of MODEL, or the VAE cannot decode to the
    size.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        branch: LoadedBranch,
        plan: StagePlan,
        *,
        negative: Conditioning | None,
        image: Tensor | None,
        size: tuple[int, int],
        sampler: Any,
        scheduler: str,
        steps: int,
        seed: int,
        scales: tuple[float, float, str],
        strength: float = 1.0,
        reanchor: str = REANCHOR[0],
        under_noise: str = UNDER_NOISE[0],
        sigmas: Tensor | None = None,
    ) -> None:
        for name, value, choices in (("reanchor", reanchor, REANCHOR), ("image_under_noise", under_noise, UNDER_NOISE)):
            if value not in choices:
                raise ValueError(f"{LABEL}: {name} is {value!r}; choose one of {', '.join(choices)}")
        self.model, self.vae, self.branch, self.plan, self.image = model, vae, branch, plan, image
        self.seed, self.scales, self.strength = seed, scales, strength
        self.reanchor, self.under_noise = reanchor, under_noise
        self.prompts = PromptSchedule(clip, tuple(enumerate(plan.prompts)))
        self.shape = latent_shape(model, vae, size)
        self.sigmas = levels_of(model, sampler, scheduler, steps, sigmas)
        self.sampler = sampler_of(sampler)
        self.negative = clip.encode_from_tokens_scheduled(clip.tokenize("")) if negative is None else negative
        self._guider(self.negative, image)  # raises an error if the models do not fit together

    def identity(self) -> dict[str, Any]:
        """Everything that the pictures depend on, except settings that the caller knows, and prompts: see `inputs`."""
        parts = {"clip": self.prompts.clip, "vae": self.vae, "branch": self.branch}
        models = {name: of_model(part.patcher) for name, part in parts.items()} | {"model": of_model(self.model)}
        if isinstance(self.vae, TemporalVAE):
            models["temporal decoder"] = of_model(self.vae.temporal.patcher)
        return {
            "models": models,
            "conditions": {"negative": of_values(comfy.sampler_helpers.convert_cond(self.negative))},
            "image": of_values(self.image),
            "sigmas": self.sigmas.tolist(),
            "versions": {LABEL: str(VERSION)},
        }

    def inputs(self, stage: int) -> str:
        """The prompt of a stage."""
        return self.plan.prompts[stage]

    def noise(self, stage: int, take: int) -> Tensor:
        """(f, c, h, w)"""
        empty = torch.zeros(self.plan.frames, *self.shape)
        noise: Any = comfy.sample.prepare_noise(empty, clip_seed(self.seed, stage, take))
        return noise

    @torch.inference_mode()
    def sample(
        self, stage: int, take: int, before: State | None, step: Callable[[float], None]
    ) -> tuple[Tensor, State]:
        """The pictures of a stage, counted from 0, and the state for the next stage. Calls step(share) for progress.

        ValueError, naming the stage, if the latents contain NaN or infinite values.
        """
        image = self.image if before is None else as_image(before["image"])
        latents = self._sampled(stage, take, image, lambda share: step(SAMPLING * share))
        check_finite(latents, f"{LABEL}: stage {stage + 1}", "the scales")
        pictures = self._decoded(latents, lambda share: step(SAMPLING + (1 - SAMPLING) * share))
        colours = self._colours(pictures) if before is None else before["colours"]
        if self.reanchor == "every frame":
            pictures = reanchored(pictures, colours)
        last = reanchored(pictures[-1:], colours) if self.reanchor == "next image" else pictures[-1:]
        stored = as_bytes(pictures[-self.plan.kept(stage) :])
        return stored, {"image": as_bytes(last), "colours": colours}

    def decode(self, pictures: Tensor) -> Iterator[Tensor]:
        """uint8 frames, one at a time, until the user cancels. `sample` has already decoded them."""
        for picture in pictures.split(1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield picture

    def _sampled(self, stage: int, take: int, image: Tensor | None, step: Callable[[float], None]) -> Tensor:
        guider = self._guider(self.prompts.encoded(stage), image)
        latents = guider.sample(
            self.noise(stage, take),
            self._latent_under_noise(stage, image),
            self.sampler,
            self.sigmas,
            callback=lambda k, _x_0, _x, total: step((k + 1) / total),
            disable_pbar=True,
            seed=sampler_seed(clip_seed(self.seed, stage, take)),
        )
        return latents.float().cpu()

    def _latent_under_noise(self, stage: int, image: Tensor | None) -> Tensor:
        """The latents (f, c, h, w) to which the noise is added: zeros, or the image in every frame (ADR 12)."""
        is_textless = not self.plan.prompts[stage]
        uses_image = self.under_noise == "always" or (self.under_noise == "without text" and is_textless)
        if image is None or not uses_image:
            return torch.zeros(self.plan.frames, *self.shape)
        return self.vae.encode(image[..., :3]).float().cpu().expand(self.plan.frames, -1, -1, -1)

    def _guider(self, positive: Conditioning, image: Tensor | None) -> DoubleConditionGuider:
        text, image_scale, order = self.scales
        if image is None:  # text with image then equals text alone, so no third prediction is needed
            image_scale, order = text, TEXT_FIRST
        pair = apply_retention((positive, self.negative), self.branch, image, strength=self.strength)
        return double_condition_guider(self.model, *pair, text=text, image=image_scale, order=order)

    def _decoded(self, latents: Tensor, step: Callable[[float], None]) -> Tensor:
        pictures, count = [], 0
        for images in decoded(self.vae, latents):
            comfy.model_management.throw_exception_if_processing_interrupted()
            pictures.append(images)
            count += len(images)
            step(count / len(latents))
        return torch.cat(pictures)

    def _colours(self, pictures: Tensor) -> Tensor:
        """The colours of the first image or, if there is no image, of the first frame."""
        return colours_of(pictures[:1] if self.image is None else self.image.float().cpu())


def as_bytes(pictures: Tensor) -> Tensor:
    """Values from 0 to 1 as uint8; other values are clamped."""
    return pictures.clamp(0, 1).mul(255).round().to(torch.uint8)


def as_image(pictures: Tensor) -> Tensor:
    """The inverse of `as_bytes`: an IMAGE with values from 0 to 1."""
    return pictures.float() / 255


def fit_image(image: Tensor | None, size: tuple[int, int], rule: str = FITS[0]) -> tuple[Tensor | None, str]:
    """An IMAGE resized to (1, H, W, 3), size being (H, W), and a remark for the user, "" if there is none.

    ValueError if `image` contains several images or is not an IMAGE.
    """
    if image is None:
        return None, ""
    source, (height, width) = pixels(image), size
    source_height, source_width = source.shape[-2:]
    resized = fit(source, height, width, rule).permute(0, 2, 3, 1).contiguous()
    if same_aspect(source_height, source_width, height, width):
        return resized, ""
    sizes = f"the image is {source_width} x {source_height}, the video {width} x {height}"
    return resized, f"{sizes}; {CHANGES[rule]} (fit: {rule})"
