"""ART-V's video (arXiv 2311.18834), frame by frame: four-way guidance as a GUIDER, and the roll with any sampler.

A frame depends on the two frames before it, on the anchor, on its prompt, and on noise of its own seed; so it is the
same whatever follows, and a stopped roll goes on exactly. What goes from frame to frame is in the space of LATENT.

Shapes: latents (1, c, h, w); references (2, c, h, w), the newer first; anchor (c, h, w); pictures (n, H, W, 3) in 0..1.
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
from ..base.fingerprint import of_machine, of_model, of_values
from ..conditions.frames import Part, check_rows
from ..conditions.prompts import StoryPrompts
from .shared import SAMPLERS, SCHEDULERS, as_bytes, clip_seed, decoded, latent_shape, levels_of, sampler_of

__all__ = ["FITS", "MASKS", "SAMPLERS", "SCHEDULERS", "ArtvGuider", "Roll", "Start", "Weights", "fitted", "started"]

VERSION = 2  # of what is done here to the numbers: another one cannot continue a video
WHAT = "autoregressive video"
FITS = ("crop", "stretch")
State = dict[str, Tensor]


class ArtvGuider(comfy.samplers.CFGGuider):
    """Eq. 8 as a GUIDER: a prediction for each condition that is left out, all in one batch when memory allows.

    model: with `apply_artv` on it, whose left_out is `left_out` of this guider's branches; with each=False all of them
    have one mask. given: the conditions that the frame has. Post-CFG functions of the MODEL get the guided prediction,
    blended; one in the place of CFG is not called.
    """

    def __init__(self, model: Any, weights: Weights, given: Iterable[str] = CONDITIONS) -> None:
        super().__init__(model)
        self.weights, self.branches = weights, needed(weights, given)

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:  # noqa: ARG002
        options: dict[str, Any] = model_options or {}
        conds = self.conds
        asked = [conds["positive"], *(conds["negative" if k == "text" else "positive"] for k in self.branches)]
        full, *others = comfy.samplers.calc_cond_batch(self.inner_model, asked, x, timestep, options)
        without = dict(zip(self.branches, others, strict=True))
        told = {"cond": conds["positive"], "uncond": conds.get("negative"), "cond_scale": 1 + self.weights.text}
        told |= {"cond_denoised": full, "uncond_denoised": without.get("text"), "input": x, "sigma": timestep}
        told |= {"model": self.inner_model, "model_options": options}
        found = blended(options, guided(full, without, self.weights), x, timestep)
        for function in options.get("sampler_post_cfg_function", []):
            found = function(told | {"denoised": found})
        return found


def left_out(branches: Iterable[str]) -> tuple[frozenset[str], ...]:
    """Which of the references and the anchor each condition of a guider's call goes without."""
    return (frozenset(), *(frozenset({name} - {"text"}) for name in branches))


@dataclass(frozen=True)
class Start:
    """What a video begins with: nothing, so that the MODEL makes its first frame; a picture, which is its first frame;
    or references and an anchor, which its first frame follows."""

    picture: Tensor | None = None
    references: Tensor | None = None
    anchor: Tensor | None = None

    def state(self) -> State | None:
        if self.references is None or self.anchor is None:
            return None
        return {"references": self.references, "anchor": self.anchor}


class Roll:
    """What a render is made with whose clips are single frames: see `rendering.loop.Work`.

    artv: the module, for this MODEL. level: of the noise on references and anchor, 0..999. size: (height, width) in
    pixels. sampler: a name, or a SAMPLER. sigmas: SIGMAS in the place of scheduler and steps. masks: of `MASKS`. story:
    its prompts stand in the place of positive's text.
    ValueError, before anything is sampled: another base than the module's, a size that the VAE does not have, no
    condition.
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
        if artv.config.anchor != "latent":
            raise ValueError(
                f"{WHAT}: this file's anchor is {artv.config.anchor} tokens of a picture, which a roll does not have; "
                'use a file whose anchor is "latent"'
            )
        self.shape = latent_shape(model, vae, size)
        self.sigmas = levels_of(model, sampler, scheduler, steps, sigmas)
        self.sampler = sampler_of(sampler)
        self.conditions = self._given(positive, negative)
        self._patched(0, 0, None)  # tells what does not fit

    def check(self, frames: int) -> None:
        """ValueError when a condition is too short for so many frames."""
        check_rows(self.conditions, 1, frames)

    def identity(self) -> dict[str, Any]:
        """What the latents depend on, besides the settings that the caller knows, and the story, which `inputs` has."""
        models = {name: of_model(part.patcher) for name, part in (("artv", self.artv), ("vae", self.vae))}
        models["model"] = of_model(self.model)
        if self.story is not None:
            models["clip"] = of_model(self.story.clip.patcher)
        return {
            "models": models,
            "conditions": {role: of_values(values) for role, values in self.conditions.items()},
            "start": of_values([self.start.picture, self.start.references, self.start.anchor]),
            "sigmas": self.sigmas.tolist(),
            "versions": {WHAT: str(VERSION), **of_machine()},
        }

    def inputs(self, frame: int) -> str:
        """The prompt of a frame and the number of its anchor."""
        return "" if self.story is None else json.dumps([self.story.text(frame), anchor_of(frame, self.story.story)])

    def noise(self, frame: int, take: int) -> Tensor:
        drawn: Any = comfy.sample.prepare_noise(torch.zeros(1, *self.shape), clip_seed(self.seed, frame, take))
        return drawn

    def augmentation(self, frame: int, take: int) -> Tensor:
        """(3, c, h, w): unit noise for the references and the anchor of a frame, of a seed of its own."""
        key = hashlib.sha256(f"references {self.seed} {frame} {take}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
        return torch.randn(3, *self.shape, generator=generator)

    @torch.inference_mode()
    def sample(
        self, frame: int, take: int, before: State | None, step: Callable[[float], None]
    ) -> tuple[Tensor, State]:
        """The latent of a frame, counted from 0, and what the next one is made from. step(share) after every step.

        ValueError for a latent with NaN or infinite numbers, naming the frame.
        """
        seen = self._seen(frame, before)
        if frame == 0 and self.start.picture is not None:
            found = self.start.picture
        else:
            found = self._sampled(frame, take, seen, step)
        found = found.float().cpu()
        if not found.isfinite().all():
            raise ValueError(
                f"{WHAT}: frame {frame + 1} came out with numbers that are none (NaN); the frames before it are kept. "
                "Lower the weights, take another sampler, or run ComfyUI with --force-fp32 (--fp32-vae for a picture)"
            )
        old, anchor = (found, found[0]) if seen is None else (seen["references"][:1], seen["anchor"])
        return found, {"references": torch.cat([found, old]), "anchor": anchor.clone()}

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """uint8 frames."""
        yield from as_bytes(decoded(self.vae, latents))

    @torch.inference_mode()
    def pictures(self, latents: Tensor) -> Tensor:
        return torch.cat(list(decoded(self.vae, latents)))

    def _given(self, positive: Any, negative: Any) -> dict[str, list[dict[str, Any]]]:
        if positive is None and self.story is None:
            raise ValueError(f"{WHAT}: there is no prompt; connect positive or a story")
        if negative is None and self.weights.text:
            if self.story is None:
                raise ValueError(
                    f"{WHAT}: text_weight is {self.weights.text:g} without a negative condition; connect one, an empty "
                    "text will do, or set text_weight to 0"
                )
            clip = self.story.clip
            negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        roles = {"positive": positive or [], "negative": negative or []}
        return {role: comfy.sampler_helpers.convert_cond(values) for role, values in roles.items()}

    def _seen(self, frame: int, before: State | None) -> State | None:
        """References and anchor of a frame. A new prompt takes over the last frame of the one before as its anchor."""
        seen = self.start.state() if frame == 0 else before
        if frame and seen is not None and self.story is not None and self.story.story.start(frame) == frame:
            return seen | {"anchor": seen["references"][0]}
        return seen

    def _sampled(self, frame: int, take: int, seen: State | None, step: Callable[[float], None]) -> Tensor:
        part, seed = Part(frame, frame + 1), clip_seed(self.seed, frame, take)
        guider = ArtvGuider(part.model(self._patched(frame, take, seen)), self.weights, given_by(seen))
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

    def _patched(self, frame: int, take: int, seen: State | None) -> Any:
        """The MODEL for one frame."""
        inwards = self.model.model.process_latent_in
        given = FrameInputs(
            references=None if seen is None else inwards(seen["references"]),
            anchor=None if seen is None else inwards(seen["anchor"][None])[0],
            level=self.level,
            noise=self.augmentation(frame, take),
        )
        branches = left_out(needed(self.weights, given_by(seen)))
        return apply_artv(self.model, self.artv, given, left_out=branches, each=self.each)

    def _conditions(self, frame: int) -> dict[str, list[dict[str, Any]]]:
        if self.story is None:
            return self.conditions
        return self.conditions | {"positive": self.story.instead(self.conditions["positive"], frame)}


def given_by(seen: State | None) -> tuple[str, ...]:
    """The conditions that a frame has."""
    return ("text",) if seen is None else CONDITIONS


def fitted(image: Tensor, size: tuple[int, int], rule: str = FITS[0]) -> tuple[Tensor, str]:
    """A picture (1, h, w, c) at (height, width), and what was done to it, "" for nothing.

    "crop" scales it until it covers the size and cuts what is over at both sides, "stretch" pulls it into shape.
    """
    height, width = size
    h, w = image.shape[1:3]
    found = fit(image[..., :3].movedim(-1, 1).float(), height, width, rule, mode="bicubic").movedim(1, -1)
    if (h, w) == (height, width):
        return found, ""
    done = "scaled and cut at its middle" if rule == "crop" else "stretched"
    return found, f"the picture of {w} x {h} pixels was {done} to {width} x {height}"


@torch.inference_mode()
def started(
    vae: Any,
    size: tuple[int, int],
    rule: str,
    *,
    image: Tensor | None = None,
    video: Iterable[Tensor] | None = None,
    anchor: Tensor | None = None,
) -> tuple[Start, str]:
    """What a video begins with, encoded, and what there is to tell about it.

    image: IMAGE, whose first picture is the first frame. video: frames (3, h, w), read to the end, two at a time; the
    last two are the references, the last the anchor, or the first picture of `anchor`, an IMAGE. ValueError when there
    is both an image and a video, or an anchor without a video.
    """
    if image is not None and video is not None:
        raise ValueError(f"{WHAT}: image and video are both connected; an image begins a video, a video is continued")
    if anchor is not None and video is None:
        raise ValueError(f"{WHAT}: there is an anchor without a video; the anchor is then the first frame, remove it")
    if image is not None:
        latent, told = _encoded(vae, image[:1], size, rule)
        more = f"; {len(image)} pictures were given, the first is taken" if len(image) > 1 else ""
        return Start(picture=latent), (told + more).removeprefix("; ")
    if video is None:
        return Start(), ""
    last = deque(video, maxlen=2)
    older, newer = (_encoded(vae, frame.movedim(0, -1)[None], size, rule) for frame in (last[0], last[-1]))
    held = newer if anchor is None else _encoded(vae, anchor[:1], size, rule)
    told = "; ".join(dict.fromkeys(filter(None, (newer[1], held[1]))))
    return Start(references=torch.cat([newer[0], older[0]]), anchor=held[0][0].clone()), told


def _encoded(vae: Any, image: Tensor, size: tuple[int, int], rule: str) -> tuple[Tensor, str]:
    picture, told = fitted(image, size, rule)
    return vae.encode(picture).float().cpu(), told
