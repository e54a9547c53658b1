"""DreamVideo's stages (arXiv 2312.03018, section 5.5) with ComfyUI's samplers: each is made from an image and a text.

A stage depends on the image that it begins with, on its prompt, and on noise of its own seed; so it is the same
whatever follows, and a stopped video goes on exactly. Every frame is decoded once, and rounded to 8 bit as the file has
it: the last one is, as it is seen, the image of the next stage, whose encoder takes pixels.

Shapes: f frames of a stage; latents (f, c, h, w); pictures (n, H, W, 3), uint8 in files, else from 0 to 1.
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
from ..base.fingerprint import of_machine, of_model, of_values
from ..conditions.prompts import PromptSchedule
from ..dreamvideo.guider import DoubleConditionGuider, double_condition_guider
from ..dreamvideo.retention import Conditioning, LoadedBranch, apply_retention
from ..vidrd.decoder import TemporalVAE
from .shared import SAMPLERS, SCHEDULERS, clip_seed, decoded, latent_shape, levels_of, sampler_of

__all__ = [
    "FITS",
    "REANCHOR",
    "SAMPLERS",
    "SCHEDULERS",
    "UNDER_NOISE",
    "StagePlan",
    "StagedVideo",
    "fitted",
    "parse_stages",
]

VERSION = 1  # of what is done here to the numbers: another one cannot continue a video
WHAT = "staged video"
SAMPLING = 0.9  # of the work on a stage; the rest is decoding
WORDS = {"crop": "its middle is kept", "pad": "white edges are added", "stretch": "it is stretched"}
State = dict[str, Tensor]


class StagedVideo:
    """What a render is made with whose clips are stages: see `rendering.loop.Work`. What is stored of a stage are the
    pictures of its frames.

    image: (1, H, W, 3) of the video's size, None for the null image. scales: of text and image, and their order. size:
    (height, width) in pixels. negative: the null text, None for an empty prompt. reanchor, under_noise: of REANCHOR and
    UNDER_NOISE. sampler: a name, or a SAMPLER. sigmas: SIGMAS in the place of scheduler and steps. ValueError, before
    anything is sampled: a branch for another base, a size that the VAE does not have.
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
        for name, value, known in (("reanchor", reanchor, REANCHOR), ("image_under_noise", under_noise, UNDER_NOISE)):
            if value not in known:
                raise ValueError(f"{WHAT}: {name} is {value!r}; choose one of {', '.join(known)}")
        self.model, self.vae, self.branch, self.plan, self.image = model, vae, branch, plan, image
        self.seed, self.scales, self.strength = seed, scales, strength
        self.reanchor, self.under_noise = reanchor, under_noise
        self.prompts = PromptSchedule(clip, tuple(enumerate(plan.prompts)))
        self.shape = latent_shape(model, vae, size)
        self.sigmas = levels_of(model, sampler, scheduler, steps, sigmas)
        self.sampler = sampler_of(sampler)
        self.negative = clip.encode_from_tokens_scheduled(clip.tokenize("")) if negative is None else negative
        self._guider(self.negative, image)  # tells what does not fit

    def identity(self) -> dict[str, Any]:
        """What the pictures depend on, besides the settings that the caller knows, and the texts (see `inputs`)."""
        parts = {"clip": self.prompts.clip, "vae": self.vae, "branch": self.branch}
        models = {name: of_model(part.patcher) for name, part in parts.items()} | {"model": of_model(self.model)}
        if isinstance(self.vae, TemporalVAE):
            models["temporal decoder"] = of_model(self.vae.temporal.patcher)
        return {
            "models": models,
            "conditions": {"negative": of_values(comfy.sampler_helpers.convert_cond(self.negative))},
            "image": of_values(self.image),
            "sigmas": self.sigmas.tolist(),
            "versions": {WHAT: str(VERSION), **of_machine()},
        }

    def inputs(self, stage: int) -> str:
        """The text of a stage."""
        return self.plan.prompts[stage]

    def noise(self, stage: int, take: int) -> Tensor:
        """(f, c, h, w)"""
        empty = torch.zeros(self.plan.frames, *self.shape)
        drawn: Any = comfy.sample.prepare_noise(empty, clip_seed(self.seed, stage, take))
        return drawn

    @torch.inference_mode()
    def sample(
        self, stage: int, take: int, before: State | None, step: Callable[[float], None]
    ) -> tuple[Tensor, State]:
        """The pictures of a stage, counted from 0, and what the next one begins with. step(share) as it goes.

        ValueError for a latent with NaN or infinite numbers, naming the stage.
        """
        image = self.image if before is None else as_image(before["image"])
        latents = self._sampled(stage, take, image, lambda share: step(SAMPLING * share))
        if not latents.isfinite().all():
            raise ValueError(
                f"{WHAT}: stage {stage + 1} came out with numbers that are none (NaN); the stages before it are kept. "
                "Lower the scales, take another sampler, or run ComfyUI with --force-fp32"
            )
        pictures = self._decoded(latents, lambda share: step(SAMPLING + (1 - SAMPLING) * share))
        colours = self._colours(pictures) if before is None else before["colours"]
        if self.reanchor == "every frame":
            pictures = reanchored(pictures, colours)
        last = reanchored(pictures[-1:], colours) if self.reanchor == "next image" else pictures[-1:]
        kept = as_bytes(pictures[-self.plan.kept(stage) :])
        return kept, {"image": as_bytes(last), "colours": colours}

    def decode(self, pictures: Tensor) -> Iterator[Tensor]:
        """uint8 frames, one at a time, as long as nobody cancels. They were decoded when they were made."""
        for picture in pictures.split(1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield picture

    def _sampled(self, stage: int, take: int, image: Tensor | None, step: Callable[[float], None]) -> Tensor:
        guider = self._guider(self.prompts.encoded(stage), image)
        found = guider.sample(
            self.noise(stage, take),
            self._beneath(stage, image),
            self.sampler,
            self.sigmas,
            callback=lambda k, _x_0, _x, total: step((k + 1) / total),
            disable_pbar=True,
            seed=clip_seed(self.seed, stage, take),
        )
        return found.float().cpu()

    def _beneath(self, stage: int, image: Tensor | None) -> Tensor:
        """What the noise is added to (f, c, h, w): nothing, or the image in every frame (ADR 12)."""
        wanted = self.under_noise == "always" or (self.under_noise == "without text" and not self.plan.prompts[stage])
        if image is None or not wanted:
            return torch.zeros(self.plan.frames, *self.shape)
        return self.vae.encode(image[..., :3]).float().cpu().expand(self.plan.frames, -1, -1, -1)

    def _guider(self, words: Conditioning, image: Tensor | None) -> DoubleConditionGuider:
        text, image_scale, order = self.scales
        if image is None:  # text and image is then the text: no third prediction is needed
            image_scale, order = text, TEXT_FIRST
        pair = apply_retention((words, self.negative), self.branch, image, strength=self.strength)
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
        """Those of the first image; without one, of the first frame."""
        return colours_of(pictures[:1] if self.image is None else self.image.float().cpu())


def as_bytes(pictures: Tensor) -> Tensor:
    """0 to 1 as uint8; what is outside is cut off."""
    return pictures.clamp(0, 1).mul(255).round().to(torch.uint8)


def as_image(pictures: Tensor) -> Tensor:
    """The inverse: IMAGE."""
    return pictures.float() / 255


def fitted(image: Tensor | None, size: tuple[int, int], rule: str = FITS[0]) -> tuple[Tensor | None, str]:
    """A user's picture as (1, H, W, 3) at (height, width), and what there is to tell about it, "" for nothing.

    ValueError for several pictures, and for what is none.
    """
    if image is None:
        return None, ""
    shown, (height, width) = pixels(image), size
    high, wide = shown.shape[-2:]
    found = fit(shown, height, width, rule).permute(0, 2, 3, 1).contiguous()
    if same_aspect(high, wide, height, width):
        return found, ""
    return found, f"the image is {wide} x {high}, the video {width} x {height}; {WORDS[rule]} (fit: {rule})"
