"""The clips of a long video (VidRD, arXiv 2309.03549) with ComfyUI's samplers.

The noise of a clip depends on the seed and the number of the clip, its history comes from a file, and its frames are
decoded in parts.

Shapes: N frames of a clip; latents (N, c, h, w); frames (k, H, W, 3).
"""

from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ...vidrd.reuse import Config as ReuseConfig
from ...vidrd.reuse import History, next_noise
from ..base.fingerprint import of_model, of_values
from ..conditions.frames import Part, check_rows
from ..conditions.prompts import PromptSchedule
from ..vidrd.decoder import TemporalVAE
from ..vidrd.reuse import ClipSampler
from .shared import (
    as_bytes,
    check_finite,
    clip_seed,
    decoded,
    latent_shape,
    levels_of,
    sampler_of,
    sampler_seed,
)

VERSION = 1  # of the computation: a video that another version began cannot be resumed


def make_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """ComfyUI's CFGGuider, as KSampler uses it. ValueError if cfg is not 1 and there is no negative conditioning."""
    if not negative and cfg != 1:
        raise ValueError(f"long video: cfg is {cfg:g}, but negative is not connected; connect it, or set cfg to 1")
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or [], negative or [])
    guider.set_cfg(cfg)
    return guider


class _OneClip:
    """A SAMPLER for one clip of a ClipSampler. After sampling, `history` is what the next clip needs."""

    def __init__(self, clips: ClipSampler, before: History | None) -> None:
        self.clips, self.before = clips, before
        self.history: History | None = None

    def sample(self, *arguments: Any) -> Tensor:
        latents, self.history = self.clips.sample(self.before, *arguments)
        return latents


class LongVideo:
    """The functions of a render, `sample` and `decode`: see `rendering.loop.Work`.

    guider: ComfyUI's GUIDER; its MODEL and conditions are not changed. prompts: one per clip; they replace the text of
    the guider's positive conditioning. size: (height, width) of the video in pixels. sampler: a name or a SAMPLER.
    sigmas: SIGMAS, which replace scheduler and steps. frames: of a clip.

    ValueError, before anything is sampled, if the VAE cannot decode to the size, the sampler cannot be replayed, the
    overlap is not shorter than a clip, or there is no conditioning.
    """

    def __init__(
        self,
        guider: Any,
        vae: Any,
        *,
        sampler: Any,
        scheduler: str,
        steps: int,
        seed: int,
        frames: int,
        size: tuple[int, int],
        config: ReuseConfig,
        step_noise: bool = False,
        prompts: PromptSchedule | None = None,
        sigmas: Tensor | None = None,
    ) -> None:
        config.check(frames)
        self.guider, self.vae, self.prompts = guider, vae, prompts
        self.seed, self.frames, self.config = seed, frames, config
        self.clips = ClipSampler(sampler_of(sampler), config, step_noise=step_noise)
        self.sigmas = levels_of(guider.model_patcher, sampler, scheduler, steps, sigmas)
        self.shape = latent_shape(guider.model_patcher, vae, size)

    def check(self, clips: int) -> None:
        """ValueError if a condition has too few rows for this number of clips."""
        check_rows(self.guider.original_conds, self.frames, clips * self.frames)

    def identity(self) -> dict[str, Any]:
        """Everything that the latents depend on, except settings that the caller knows: hashes, sigmas, versions."""
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
        versions = {"long video": str(VERSION)}
        return {
            "models": models,
            "conditions": conditions,
            "guider": guider,
            "sigmas": self.sigmas.tolist(),
            "versions": versions,
        }

    def noise(self, clip: int, take: int, before: History | None) -> Tensor:
        """(N, c, h, w): FNR and PNS (Eq. 6 and 7), applied to noise from the clip's own seed."""
        empty = torch.zeros(self.frames, *self.shape)
        fresh: Any = comfy.sample.prepare_noise(empty, clip_seed(self.seed, clip, take))
        return fresh if before is None else next_noise(before.noise, fresh[None], self.config)[0]

    @torch.inference_mode()
    def sample(
        self, clip: int, take: int, before: dict[str, Tensor] | None, step: Callable[[float], None]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents of a clip, counted from 0, and the tensors of its history. Calls step(share) after every step.

        ValueError, naming the clip, if the latents contain NaN or infinite values.
        """
        history = None if before is None else History.of(before)
        part = Part(clip * self.frames, (clip + 1) * self.frames)
        guider = part.guider(self.guider, self._conditions(clip))
        sampler = _OneClip(self.clips, history)
        clip_latents = guider.sample(
            self.noise(clip, take, history),
            torch.zeros(self.frames, *self.shape),
            sampler,
            self.sigmas,
            callback=lambda k, _x_0, _x, total: step((k + 1) / total),
            disable_pbar=True,
            seed=sampler_seed(self._step_seed(clip, take)),
        )
        assert sampler.history is not None
        clip_latents = clip_latents.float().cpu()
        check_finite(clip_latents, f"long video: clip {clip + 1}", "cfg")
        return clip_latents, sampler.history.tensors()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """uint8 frames of a clip, a few at a time."""
        yield from as_bytes(decoded(self.vae, latents))

    @torch.inference_mode()
    def pictures(self, latents: Tensor) -> Tensor:
        """The frames of a clip as an IMAGE (N, H, W, 3) in 0..1."""
        return torch.cat(list(decoded(self.vae, latents)))

    def _conditions(self, clip: int) -> dict[str, list[dict[str, Any]]]:
        conds = self.guider.original_conds
        if self.prompts is None:
            return conds
        roles = getattr(self.guider, "text_roles", ("positive",))
        return conds | {role: self.prompts.instead(conds.get(role, ()), clip) for role in roles}

    def _step_seed(self, clip: int, take: int) -> int:
        """The seed of the noise that a sampler adds in its steps, the same as in ReuseSampler."""
        return (self.seed + clip) % 2**64 if take == 0 else clip_seed(self.seed, clip, take)
