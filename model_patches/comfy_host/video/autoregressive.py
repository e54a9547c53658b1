"""ART-V's video (arXiv 2311.18834), frame by frame: four-way guidance as a GUIDER, and the rollout with any sampler.

A frame depends on the two previous frames, the anchor, its prompt, and noise from its own seed. It does not depend on
later frames, so an interrupted video resumes with exactly the same frames. The state that is passed from frame to frame
consists of latents as a LATENT holds them.

Shapes: latents (1, c, h, w); references (2, c, h, w), the newer first; anchor (c, h, w); images (n, H, W, 3) in 0..1.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...artv.guidance import CONDITIONS, MASKS, Weights, guided, needed
from ...artv.story import anchor_of
from ...core.pictures import fit
from ..artv.apply import apply_artv, blended
from ..artv.checks import FrameInputs
from ..artv.files import LoadedArtv
from ..base.equality import same_conditions
from ..base.fingerprint import of_model, of_values
from ..conditions.frames import Part, check_rows
from ..conditions.prompts import StoryPrompts
from .shared import (
    SAMPLERS,
    SCHEDULERS,
    as_bytes,
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
    "MASKS",
    "SAMPLERS",
    "SCHEDULERS",
    "ArtvGuider",
    "Rollout",
    "Start",
    "Weights",
    "encode_start",
    "fit_image",
]

VERSION = 2  # of the computation: a video that another version began cannot be resumed
LABEL = "autoregressive video"
FITS = ("crop", "stretch")
State = dict[str, Tensor]


class ArtvGuider(comfy.samplers.CFGGuider):
    """Eq. 8 as a GUIDER: a prediction with all conditions and one without each, in one batch if memory allows.

    model: a MODEL after `apply_artv`, which was called with `left_out` of this guider's branches. With each=False, all
    predictions are blended with the same mask. conditions: those that the frame has. Post-CFG functions of the MODEL
    receive the guided and blended prediction; a function that replaces CFG is not called.
    """

    def __init__(self, model: Any, weights: Weights, conditions: Iterable[str] = CONDITIONS) -> None:
        super().__init__(model)
        self.weights, self.branches = weights, needed(weights, conditions)

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:  # noqa: ARG002
        options: dict[str, Any] = model_options or {}
        conds, branches = self.conds, self.branches
        if branches[-1:] == ("text",) and same_conditions(conds["positive"], conds["negative"]):
            branches = branches[:-1]  # without a prompt, the prediction without the text is that with it
        batch = [conds["positive"], *(conds["negative" if k == "text" else "positive"] for k in branches)]
        full, *others = comfy.samplers.calc_cond_batch(self.inner_model, batch, x, timestep, options)
        without = dict(zip(branches, others, strict=True))
        args = {"cond": conds["positive"], "uncond": conds.get("negative"), "cond_scale": 1 + self.weights.text}
        args |= {
            "cond_denoised": full,
            "uncond_denoised": without.get("text", full if "text" in self.branches else None),
            "input": x,
            "sigma": timestep,
        }
        args |= {"model": self.inner_model, "model_options": options}
        denoised = blended(options, guided(full, without, self.weights), x, timestep)
        for function in options.get("sampler_post_cfg_function", []):
            denoised = function(args | {"denoised": denoised})
        return denoised


def left_out(branches: Iterable[str]) -> tuple[frozenset[str], ...]:
    """For each prediction of a guider with these branches: which of reference and anchor it does without."""
    return (frozenset(), *(frozenset({name} - {"text"}) for name in branches))


@dataclass(frozen=True)
class Start:
    """The start of a video: nothing, so that the MODEL makes the first frame; an image, which becomes the first frame;
    or references and an anchor, which the first frame follows.

    image: its latent (1, c, h, w).
    """

    image: Tensor | None = None
    references: Tensor | None = None
    anchor: Tensor | None = None

    def state(self) -> State | None:
        if self.references is None or self.anchor is None:
            return None
        return {"references": self.references, "anchor": self.anchor}


class Rollout:
    """The functions of a render (see `rendering.loop.Work`) in which every clip is a single frame.

    artv: the ART-V model, trained for this kind of MODEL. level: time step of the noise on references and anchor,
    0..999. size: (height, width) in pixels. sampler: a name or a SAMPLER. sigmas: SIGMAS, which replace scheduler and
    steps. masks: one of `MASKS`. story: its prompts replace the text of positive.

    ValueError, before anything is sampled, if the ART-V model is for another kind of MODEL, the VAE cannot decode to
    the size, or there is no conditioning.
    """

    def __init__(
        self,
        model: Any,
        artv: LoadedArtv,
        vae: Any,
        *,
        positive: Any,
        negative: Any,
        sampler: Any,
        scheduler: str,
        steps: int,
        seed: int,
        size: tuple[int, int],
        weights: Weights,
        level: int,
        masks: str = MASKS[0],
        start: Start | None = None,
        story: StoryPrompts | None = None,
        sigmas: Tensor | None = None,
    ) -> None:
        self.model, self.artv, self.vae, self.story = model, artv, vae, story
        self.seed, self.level, self.weights, self.start = seed, level, weights, start or Start()
        self.each = masks == MASKS[1]
        self._json = -1, ""  # the index of a prompt, and its text as JSON
        if artv.config.anchor != "latent":
            raise ValueError(
                f"{LABEL}: the anchor of this ART-V model is {artv.config.anchor} tokens, but this node only has the "
                'latent of the anchor frame; use a file whose anchor is "latent"'
            )
        self.shape = latent_shape(model, vae, size)
        self.sigmas = levels_of(model, sampler, scheduler, steps, sigmas)
        self.sampler = sampler_of(sampler)
        self.conditions = self._checked_conditions(positive, negative)
        self._patched(0, 0, None)  # raises an error if the models do not fit together

    def check(self, frames: int) -> None:
        """ValueError if a condition has too few rows for this number of frames."""
        check_rows(self.conditions, 1, frames)

    def identity(self) -> dict[str, Any]:
        """Everything that the latents depend on, except settings that the caller knows, and the story: see `inputs`."""
        models = {name: of_model(part.patcher) for name, part in (("artv", self.artv), ("vae", self.vae))}
        models["model"] = of_model(self.model)
        if self.story is not None:
            models["clip"] = of_model(self.story.clip.patcher)
        return {
            "models": models,
            "conditions": {role: of_values(values) for role, values in self.conditions.items()},
            "start": of_values([self.start.image, self.start.references, self.start.anchor]),
            "sigmas": self.sigmas.tolist(),
            "versions": {LABEL: str(VERSION)},
        }

    def inputs(self, frame: int) -> str:
        """The prompt of a frame and the index of its anchor frame, as JSON; "" without a story."""
        if self.story is None:
            return ""
        story = self.story.story
        place, anchor = story.place(frame), anchor_of(frame, story)
        if self._json[0] != place:  # a story has up to a million frames, and few prompts
            self._json = place, json.dumps(story.prompts[place][1])
        return f"[{self._json[1]}, {json.dumps(anchor)}]"

    def noise(self, frame: int, take: int) -> Tensor:
        noise: Any = comfy.sample.prepare_noise(torch.zeros(1, *self.shape), clip_seed(self.seed, frame, take))
        return noise

    def augmentation(self, frame: int, take: int) -> Tensor:
        """(3, c, h, w): unit noise for the references and the anchor of a frame, from a seed of its own."""
        key = hashlib.sha256(f"references {self.seed} {frame} {take}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
        return torch.randn(3, *self.shape, generator=generator)

    @torch.inference_mode()
    def sample(
        self, frame: int, take: int, before: State | None, step: Callable[[float], None]
    ) -> tuple[Tensor, State]:
        """The latent of a frame, counted from 0, and the state for the next frame. Calls step(share) after every step.

        ValueError, naming the frame, if the latent contains NaN or infinite values.
        """
        state = self._state(frame, before)
        if frame == 0 and self.start.image is not None:
            latent = self.start.image
        else:
            latent = self._sampled(frame, take, state, step)
        latent = latent.float().cpu()
        check_finite(latent, f"{LABEL}: frame {frame + 1}", "the weights")
        previous, anchor = (latent, latent[0]) if state is None else (state["references"][:1], state["anchor"])
        return latent, {"references": torch.cat([latent, previous]), "anchor": anchor.clone()}

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Frames in parts, uint8."""
        yield from as_bytes(decoded(self.vae, latents))

    @torch.inference_mode()
    def pictures(self, latents: Tensor) -> Tensor:
        """The frames as an IMAGE (n, H, W, 3) in 0..1."""
        return torch.cat(list(decoded(self.vae, latents)))

    def _checked_conditions(self, positive: Any, negative: Any) -> dict[str, list[dict[str, Any]]]:
        if positive is None and self.story is None:
            raise ValueError(f"{LABEL}: there is no prompt; connect positive or a story")
        if negative is None and self.weights.text:
            if self.story is None:
                raise ValueError(
                    f"{LABEL}: text_weight is {self.weights.text:g}, but negative is not connected; connect it (an "
                    "empty prompt is enough) or set text_weight to 0"
                )
            clip = self.story.clip
            negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        roles = {"positive": positive or [], "negative": negative or []}
        return {role: comfy.sampler_helpers.convert_cond(values) for role, values in roles.items()}

    def _state(self, frame: int, before: State | None) -> State | None:
        """References and anchor of a frame. Where the prompt changes, the last frame of the previous prompt is the new
        anchor."""
        state = self.start.state() if frame == 0 else before
        if frame and state is not None and self.story is not None and self.story.story.start(frame) == frame:
            return state | {"anchor": state["references"][0]}
        return state

    def _sampled(self, frame: int, take: int, state: State | None, step: Callable[[float], None]) -> Tensor:
        part, seed = Part(frame, frame + 1), sampler_seed(clip_seed(self.seed, frame, take))
        guider = ArtvGuider(part.model(self._patched(frame, take, state)), self.weights, condition_names(state))
        guider.original_conds = part.conditions(self._conditions(frame))
        return guider.sample(
            self.noise(frame, take),
            torch.zeros(1, *self.shape),
            self.sampler,
            self.sigmas,
            callback=lambda k, _x_0, _x, total: step((k + 1) / total),
            disable_pbar=True,
            seed=seed,
        )

    def _patched(self, frame: int, take: int, state: State | None) -> Any:
        """The MODEL with the ART-V model and the inputs of one frame."""
        process_in = self.model.model.process_latent_in
        inputs = FrameInputs(
            references=None if state is None else process_in(state["references"]),
            anchor=None if state is None else process_in(state["anchor"][None])[0],
            level=self.level,
            noise=self.augmentation(frame, take),
        )
        branches = left_out(needed(self.weights, condition_names(state)))
        return apply_artv(self.model, self.artv, inputs, left_out=branches, each=self.each)

    def _conditions(self, frame: int) -> dict[str, list[dict[str, Any]]]:
        if self.story is None:
            return self.conditions
        return self.conditions | {"positive": self.story.instead(self.conditions["positive"], frame)}


def condition_names(state: State | None) -> tuple[str, ...]:
    """The conditions that a frame has: only the text if there are no references and no anchor."""
    return ("text",) if state is None else CONDITIONS


def fit_image(image: Tensor, size: tuple[int, int], rule: str = FITS[0]) -> tuple[Tensor, str]:
    """An image (1, h, w, c) resized to (height, width), and a sentence about the change, "" if there is none.

    "crop" scales the image until it covers the size and cuts off both ends of the longer side; "stretch" changes its
    aspect ratio.
    """
    height, width = size
    h, w = image.shape[1:3]
    resized = fit(image[..., :3].movedim(-1, 1).float(), height, width, rule, mode="bicubic").movedim(1, -1)
    if (h, w) == (height, width):
        return resized, ""
    change = "scaled and cropped at its centre" if rule == "crop" else "stretched"
    return resized, f"the image of {w} x {h} pixels was {change} to {width} x {height}"


@torch.inference_mode()
def encode_start(
    vae: Any,
    size: tuple[int, int],
    rule: str,
    *,
    image: Tensor | None = None,
    video: Iterable[Tensor] | None = None,
    anchor: Tensor | None = None,
) -> tuple[Start, str]:
    """The encoded start of a video, and a remark for the user, "" if there is none.

    image: IMAGE, whose first image becomes the first frame. video: frames (3, h, w), read to the end, two at a time.
    Its last two frames are the references. The anchor is its last frame, or the first image of `anchor`, an IMAGE.
    ValueError if there are both an image and a video, or an anchor without a video.
    """
    if image is not None and video is not None:
        raise ValueError(
            f"{LABEL}: image and video are both connected; connect image to begin a video, or video to continue one"
        )
    if anchor is not None and video is None:
        raise ValueError(
            f"{LABEL}: anchor is connected without a video; disconnect it, because without a video the first frame is "
            "the anchor"
        )
    if image is not None:
        latent, remark = _encoded(vae, image[:1], size, rule)
        count = f"; only the first of {len(image)} images is used" if len(image) > 1 else ""
        return Start(image=latent), (remark + count).removeprefix("; ")
    if video is None:
        return Start(), ""
    last = deque(video, maxlen=2)
    older, newer = (_encoded(vae, frame.movedim(0, -1)[None], size, rule) for frame in (last[0], last[-1]))
    fixed = newer if anchor is None else _encoded(vae, anchor[:1], size, rule)
    remark = "; ".join(dict.fromkeys(filter(None, (newer[1], fixed[1]))))
    return Start(references=torch.cat([newer[0], older[0]]), anchor=fixed[0][0].clone()), remark


def _encoded(vae: Any, image: Tensor, size: tuple[int, int], rule: str) -> tuple[Tensor, str]:
    resized, remark = fit_image(image, size, rule)
    return vae.encode(resized).float().cpu(), remark
