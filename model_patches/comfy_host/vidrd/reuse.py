"""Reuse of the clip before (VidRD) around ComfyUI's samplers: a NOISE and a SAMPLER, both without memory.

A latent batch of clips * N frames is sampled clip by clip in one run of the sampler node. The NOISE draws for all of
them; the SAMPLER runs the one it was given once per clip and writes the replayed frames into its state.

ComfyUI's samplers are functions of (model, x, sigmas, ...). The model they get is a stand-in which counts the calls:
the first call of each step has the sampler's state as its input, so that is where frames are replaced. How many calls a
step has, and whether a step draws noise, is told in KINDS; a sampler that is not in it is refused.

Shapes: N frames of a clip; latents (clips * N, c, h, w).
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from torch import Tensor

from ...vidrd.reuse import RULES, History, Recorder, Rule, StepNoise, next_noise
from ...vidrd.reuse import Config as ReuseConfig

__all__ = ["KINDS", "RULES", "ClipSampler", "ReuseConfig", "ReuseNoise", "ReuseSampler", "Rule", "kind_of"]

CLOSE = 1e-3  # relative; UniPC converts noise levels to and fro
UNIPC_END = 0.001  # where it goes instead of 0


def _one(_k: int, _sigmas: Sequence[float]) -> int:
    return 1


def _two(k: int, sigmas: Sequence[float]) -> int:
    """Heun's and the midpoint method; a step to 0 is Euler's."""
    return 1 if sigmas[k + 1] == 0 else 2


def _heunpp2(k: int, sigmas: Sequence[float]) -> int:
    return 1 if sigmas[k + 1] == sigmas[-1] else 2 if sigmas[k + 2] == sigmas[-1] else 3


@dataclass(frozen=True)
class Kind:
    """How a sampler function of ComfyUI goes about its steps."""

    calls: Callable[[int, Sequence[float]], int] = _one  # of the model, in step k
    draws: bool = False  # noise in its steps
    scaled: bool = False  # what it gives the model is a scaled copy of its state (UniPC)


KINDS = {
    "sample_euler": Kind(),  # DDIM, too
    "sample_dpmpp_2m": Kind(),
    "sample_lms": Kind(),
    "sample_ipndm": Kind(),
    "sample_ipndm_v": Kind(),
    "sample_deis": Kind(),
    "sample_res_multistep": Kind(),
    "sample_gradient_estimation": Kind(),
    "sample_unipc": Kind(scaled=True),
    "sample_unipc_bh2": Kind(scaled=True),
    "sample_heun": Kind(_two),
    "sample_dpm_2": Kind(_two),
    "sample_heunpp2": Kind(_heunpp2),
    "sample_euler_ancestral": Kind(draws=True),
    "sample_dpm_2_ancestral": Kind(_two, draws=True),
    "sample_dpmpp_2s_ancestral": Kind(_two, draws=True),
    "sample_dpmpp_2m_sde": Kind(draws=True),
    "sample_dpmpp_2m_sde_heun": Kind(draws=True),
    "sample_dpmpp_3m_sde": Kind(draws=True),
    "sample_lcm": Kind(draws=True),
}


def kind_of(sampler: Any) -> Kind:
    """ValueError for a SAMPLER whose steps are not known here, with what would do."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__)
    if name not in KINDS:
        known = ", ".join(sorted(n.removeprefix("sample_") for n in KINDS))
        raise ValueError(
            f"reuse: the sampler {name.removeprefix('sample_')} chooses its own steps or draws noise in a way that "
            f"cannot be replayed; use one of {known}, ddim"
        )
    kind = KINDS[name]
    churn = sampler.extra_options.get("s_churn", 0.0) > 0
    return Kind(kind.calls, draws=kind.draws or churn, scaled=kind.scaled)


class ReuseNoise:
    """A NOISE for all clips of a batch: FNR and PNS (Eq. 6 and 7) on what another NOISE draws."""

    def __init__(self, inner: Any, frames: int, config: ReuseConfig) -> None:
        self.inner, self.frames, self.config = inner, frames, config
        self.seed = inner.seed

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        clips = split_clips(self.inner.generate_noise(input_latent), self.frames)
        noise = [clips[0]]
        for fresh in clips[1:]:
            noise.append(next_noise(noise[-1][None], fresh[None], self.config)[0])
        return torch.cat(noise)


class ClipSampler:
    """A k-sampler of ComfyUI's that samples one clip after another, with staged guidance (DSG, Eq. 8).

    ValueError for a sampler that cannot be replayed, or that adds noise at its steps without step_noise.
    """

    def __init__(self, inner: Any, config: ReuseConfig, *, step_noise: bool = False) -> None:
        self.inner, self.config = inner, config
        self.kind = kind_of(inner)
        if self.kind.draws and not step_noise:
            raise ValueError(
                "reuse: this sampler adds new noise at every step, which parts two clips that began alike; use euler, "
                "ddim, dpmpp_2m, uni_pc or another one without noise, or switch on reuse_step_noise"
            )

    def sample(
        self,
        before: History | None,
        guider: Any,
        sigmas: Tensor,
        extra_args: Any,
        callback: Any,
        noise: Tensor,
        *rest: Any,
    ) -> tuple[Tensor, History]:
        """The clip that begins with `noise`, and what the next one needs. The arguments are those of a SAMPLER."""
        run = ClipRun(self, sigmas, before)
        sampler = comfy.samplers.KSAMPLER(run, self.inner.extra_options, self.inner.inpaint_options)
        # UniPC writes into the levels that it gets, hence the clone
        found = sampler.sample(guider, sigmas.clone(), extra_args, callback, noise, *rest)
        return found, run.history(noise)


class ReuseSampler:
    """A SAMPLER that runs another once per clip, with staged guidance. It keeps nothing between runs."""

    def __init__(self, inner: Any, frames: int, config: ReuseConfig, *, step_noise: bool = False) -> None:
        self.clip, self.frames = ClipSampler(inner, config, step_noise=step_noise), frames

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        clips = split_clips(noise, self.frames)
        _refuse_conditions_of_frames(model_wrap, len(noise), self.frames)
        images, masks = (_parts(v, len(clips), self.frames) for v in (latent_image, denoise_mask))
        done: list[Tensor] = []
        before: History | None = None
        report = Report(callback, len(clips), len(sigmas) - 1)
        for i, clip in enumerate(clips):
            seed = {} if extra_args.get("seed") is None else {"seed": extra_args["seed"] + i}
            rest = (images[i], masks[i], disable_pbar)
            found, before = self.clip.sample(before, model_wrap, sigmas, extra_args | seed, report.of(i), clip, *rest)
            done.append(found)
        return torch.cat(done)


class ClipRun:
    """ComfyUI's sampler function for one clip: the inner one, on a model that replays and records."""

    def __init__(self, owner: ClipSampler, sigmas: Tensor, before: History | None) -> None:
        self.owner, self.before = owner, before
        self.recorder = Recorder(owner.config, sigmas.tolist(), before)
        self.noise: StepNoise | None = None
        self.__name__ = getattr(owner.inner.sampler_function, "__name__", "sampler")  # ComfyUI logs it

    def __call__(self, model: Any, x: Tensor, sigmas: Tensor, *, extra_args: dict[str, Any], **options: Any) -> Tensor:
        function = self.owner.inner.sampler_function
        if self.owner.kind.draws:
            draw = default_noise_sampler(x, seed=extra_args.get("seed"))
            self.noise = StepNoise(self.owner.config, lambda: draw(None, None)[None], self.before)
            if "noise_sampler" not in inspect.signature(function).parameters:
                raise ValueError(
                    "reuse: this sampler's own noise (s_churn) cannot be reused; set s_churn to 0, or use another one"
                )
            options["noise_sampler"] = self._drawn
        outer = OuterSteps(model, self.recorder, self.owner.kind)
        result = function(outer, x, sigmas, extra_args=extra_args, **options)
        return outer.finished(result)

    def history(self, noise: Tensor) -> History:
        return self.recorder.history(noise[None], self.noise.kept if self.noise else ())

    def _drawn(self, _sigma: Any, _sigma_next: Any) -> Tensor:
        assert self.noise is not None
        return self.noise()[0]


class OuterSteps:
    """The model as the inner sampler sees it. At the first call of a step the sampler's own state is written to.

    A sampler whose state is out of reach (UniPC passes a scaled copy) keeps its own states, and the difference is added
    to what the model sees. Its updates are x' = (sigma' / sigma) x + terms of the model's predictions, so the
    difference shrinks with sigma from step to step, and at the end what is left of it is added to the result.
    """

    def __init__(self, model: Any, recorder: Recorder, kind: Kind) -> None:
        self.model, self.recorder, self.kind = model, recorder, kind
        self.step, self.left = 0, 0  # the next step; calls that the current one still has
        self.offset: Tensor | None = None  # of the state in the inner sampler, at noise level `offset_sigma`
        self.offset_sigma = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **options: Any) -> Tensor:
        if self.left:
            self.left -= 1
            return self.model(x, sigma, **options)
        k, sigmas = self.step, self.recorder.sigmas
        level = sigma.flatten()[0].item()
        if k < self.recorder.steps:
            if abs(level - sigmas[k]) > CLOSE * sigmas[k]:
                raise ValueError(
                    f"reuse: the sampler took its step {k} at noise level {level:.4g} instead of {sigmas[k]:.4g}; use "
                    "another sampler or scheduler"
                )
            self.step, self.left = k + 1, self.kind.calls(k, sigmas) - 1
            x = self._shifted(x, k, level) if self.kind.scaled else self._written(x, k)
        return self.model(x, sigma, **options)

    def _written(self, x: Tensor, k: int) -> Tensor:
        replaced = self.recorder.step(k, x[None])[0]
        return x if replaced is x else x.copy_(replaced)

    def _shifted(self, x: Tensor, k: int, level: float) -> Tensor:
        seen = x if self.offset is None else x + self.offset * (level / self.offset_sigma)
        replaced = self.recorder.step(k, seen[None])[0]
        self.offset, self.offset_sigma = replaced - x, level
        return replaced

    def finished(self, result: Tensor) -> Tensor:
        """The result of the inner sampler, the rest of the difference added."""
        if self.offset is None:
            return result
        return result + self.offset * ((self.recorder.sigmas[-1] or UNIPC_END) / self.offset_sigma)


class Report:
    """Progress over all clips, from each clip's own; with the last one all predicted latents are told."""

    def __init__(self, callback: Any, clips: int, steps: int) -> None:
        self.callback, self.clips, self.steps = callback, clips, steps
        self.predicted: dict[int, Tensor] = {}

    def of(self, clip: int) -> Any:
        if self.callback is None:
            return None

        def told(step: int, x_0: Tensor, x: Tensor, _total: int) -> None:
            if step == self.steps - 1:
                self.predicted[clip] = x_0
            if len(self.predicted) == self.clips:
                x_0 = torch.cat([self.predicted[i] for i in range(self.clips)])
            self.callback(clip * self.steps + step, x_0, x, self.clips * self.steps)

        return told


def split_clips(latents: Tensor, frames: int) -> list[Tensor]:
    """(clips * N, c, h, w) -> clips of (N, c, h, w). ValueError for video latents, or when N does not divide."""
    if latents.ndim != 4:
        raise ValueError(
            f"reuse: the latent has the shape {tuple(latents.shape)}; clips of image models (frames, channels, height, "
            "width) are needed"
        )
    if len(latents) % frames:
        raise ValueError(
            f"reuse: {len(latents)} frames do not divide into clips of {frames}; set the latent's batch size to a "
            f"multiple of {frames}"
        )
    return list(latents.split(frames))


def _parts(values: Tensor | None, clips: int, frames: int) -> Sequence[Tensor | None]:
    """Of what belongs to the frames; a mask of one image belongs to all."""
    if values is None or len(values) != clips * frames:
        return [values] * clips
    return values.split(frames)


def _refuse_conditions_of_frames(guider: Any, total: int, frames: int) -> None:
    """ComfyUI repeats or cuts what has a batch to the batch of a call: every clip would get the first clip's part."""
    if total == frames:
        return
    for conditions in getattr(guider, "conds", {}).values():
        for condition in conditions or ():
            tensors = [getattr(c, "cond", None) for c in condition.get("model_conds", {}).values()]
            hint = getattr(condition.get("control"), "cond_hint_original", None)
            for tensor in (*tensors, hint):
                if isinstance(tensor, Tensor) and tensor.ndim > 1 and frames < len(tensor):
                    raise ValueError(
                        f"reuse: a condition holds {len(tensor)} rows for {total} frames, but clips of {frames} are "
                        "sampled one after the other; give conditions and control images that all clips share"
                    )
