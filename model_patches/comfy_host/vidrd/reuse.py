"""Reuse of the previous clip (VidRD) with ComfyUI's samplers: a NOISE and a SAMPLER, both stateless.

A latent batch of clips * N frames is sampled clip by clip in one run of the sampler node. The NOISE draws noise for all
clips; the SAMPLER runs an inner sampler once per clip and writes the replayed frames into its state.

ComfyUI's samplers are functions of (model, x, sigmas, ...). They get a wrapped model that counts the calls: the input
of the first call in each step is the sampler's state, in which frames are replaced. KINDS lists how many calls a step
has and whether it draws noise; other samplers are refused.

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
from ..base.windows import hints_of

__all__ = ["KINDS", "RULES", "ClipSampler", "ReuseConfig", "ReuseNoise", "ReuseSampler", "Rule", "kind_of"]

CLOSE = 1e-3  # relative; UniPC converts noise levels back and forth
UNIPC_END = 0.001  # its last noise level, instead of 0


def _one(_k: int, _sigmas: Sequence[float]) -> int:
    return 1


def _two(k: int, sigmas: Sequence[float]) -> int:
    """Heun's method and the midpoint method; a step to 0 is an Euler step."""
    return 1 if sigmas[k + 1] == 0 else 2


def _heunpp2(k: int, sigmas: Sequence[float]) -> int:
    return 1 if sigmas[k + 1] == sigmas[-1] else 2 if sigmas[k + 2] == sigmas[-1] else 3


@dataclass(frozen=True)
class Kind:
    """How a ComfyUI sampler function performs its steps."""

    calls: Callable[[int, Sequence[float]], int] = _one  # calls of the model in step k
    draws: bool = False  # whether its steps draw noise
    scaled: bool = False  # whether the model's input is a scaled copy of its state (UniPC)


KINDS = {
    "sample_euler": Kind(),  # also DDIM
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
    """The kind of a SAMPLER. ValueError, listing the supported ones, for any other."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__)
    if name not in KINDS:
        supported = ", ".join(sorted(n.removeprefix("sample_") for n in KINDS))
        raise ValueError(
            f"reuse: the sampler {name.removeprefix('sample_')} is not supported, because it chooses its own steps or "
            f"draws noise that cannot be replayed; use one of {supported}, ddim"
        )
    kind = KINDS[name]
    churn = sampler.extra_options.get("s_churn", 0.0) > 0
    return Kind(kind.calls, draws=kind.draws or churn, scaled=kind.scaled)


class ReuseNoise:
    """A NOISE for all clips of a batch: FNR and PNS (Eq. 6 and 7) applied to the noise of another NOISE."""

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
    """A ComfyUI k-sampler that samples one clip after another, with staged guidance (DSG, Eq. 8).

    ValueError for a sampler that cannot be replayed, or that adds noise in its steps if step_noise is off.
    """

    def __init__(self, inner: Any, config: ReuseConfig, *, step_noise: bool = False) -> None:
        self.inner, self.config = inner, config
        self.kind = kind_of(inner)
        if self.kind.draws and not step_noise:
            raise ValueError(
                "reuse: this sampler adds new noise at every step, which makes clips diverge; use euler, ddim, "
                "dpmpp_2m, uni_pc or another sampler without noise, or switch on reuse_step_noise"
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
        """The clip that starts from `noise`, and the history for the next one. Other arguments as for a SAMPLER."""
        run = ClipRun(self, sigmas, before)
        sampler = comfy.samplers.KSAMPLER(run, self.inner.extra_options, self.inner.inpaint_options)
        # a clone, because UniPC modifies the levels
        latents = sampler.sample(guider, sigmas.clone(), extra_args, callback, noise, *rest)
        return latents, run.history(noise)


class ReuseSampler:
    """A SAMPLER that runs another one once per clip, with staged guidance. It stores nothing between runs."""

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
        clip_latents: list[Tensor] = []
        before: History | None = None
        report = Report(callback, len(clips), len(sigmas) - 1)
        for i, clip in enumerate(clips):
            seed = {} if extra_args.get("seed") is None else {"seed": extra_args["seed"] + i}
            rest = (images[i], masks[i], disable_pbar)
            latents, before = self.clip.sample(before, model_wrap, sigmas, extra_args | seed, report.of(i), clip, *rest)
            clip_latents.append(latents)
        return torch.cat(clip_latents)


class ClipRun:
    """A ComfyUI sampler function for one clip: the inner one, with a model that replays and records."""

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
                    "reuse: the noise of this sampler (s_churn) cannot be reused; set s_churn to 0, or use another "
                    "sampler"
                )
            options["noise_sampler"] = self._draw_noise
        outer = OuterSteps(model, self.recorder, self.owner.kind)
        result = function(outer, x, sigmas, extra_args=extra_args, **options)
        return outer.finish(result)

    def history(self, noise: Tensor) -> History:
        return self.recorder.history(noise[None], self.noise.draws if self.noise else ())

    def _draw_noise(self, _sigma: Any, _sigma_next: Any) -> Tensor:
        assert self.noise is not None
        return self.noise()[0]


class OuterSteps:
    """The model that the inner sampler calls. At the first call of a step, it writes into the sampler's state.

    If the state is not accessible (UniPC passes a scaled copy), the difference is added to the model's input instead.
    The sampler's updates are x' = (sigma' / sigma) x + terms of the model's predictions, so the difference shrinks with
    sigma from step to step. At the end, the remaining difference is added to the result.
    """

    def __init__(self, model: Any, recorder: Recorder, kind: Kind) -> None:
        self.model, self.recorder, self.kind = model, recorder, kind
        self.step, self.remaining = 0, 0  # the next step; remaining calls of the current one
        self.offset: Tensor | None = None  # to the inner sampler's state, at noise level `offset_sigma`
        self.offset_sigma = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **options: Any) -> Tensor:
        if self.remaining:
            self.remaining -= 1
            return self.model(x, sigma, **options)
        k, sigmas = self.step, self.recorder.sigmas
        level = sigma.flatten()[0].item()
        if k < self.recorder.steps:
            if abs(level - sigmas[k]) > CLOSE * sigmas[k]:
                raise ValueError(
                    f"reuse: in step {k} the sampler used noise level {level:.4g} instead of {sigmas[k]:.4g}; use "
                    "another sampler or scheduler"
                )
            self.step, self.remaining = k + 1, self.kind.calls(k, sigmas) - 1
            x = self._shift(x, k, level) if self.kind.scaled else self._write(x, k)
        return self.model(x, sigma, **options)

    def _write(self, x: Tensor, k: int) -> Tensor:
        replaced = self.recorder.step(k, x[None])[0]
        return x if replaced is x else x.copy_(replaced)

    def _shift(self, x: Tensor, k: int, level: float) -> Tensor:
        model_input = x if self.offset is None else x + self.offset * (level / self.offset_sigma)
        replaced = self.recorder.step(k, model_input[None])[0]
        self.offset, self.offset_sigma = replaced - x, level
        return replaced

    def finish(self, result: Tensor) -> Tensor:
        """The result of the inner sampler plus the remaining difference."""
        if self.offset is None:
            return result
        return result + self.offset * ((self.recorder.sigmas[-1] or UNIPC_END) / self.offset_sigma)


class Report:
    """Progress over all clips, from the progress of each clip; the last clip reports all predicted latents."""

    def __init__(self, callback: Any, clips: int, steps: int) -> None:
        self.callback, self.clips, self.steps = callback, clips, steps
        self.predicted: dict[int, Tensor] = {}

    def of(self, clip: int) -> Any:
        if self.callback is None:
            return None

        def report(step: int, x_0: Tensor, x: Tensor, _total: int) -> None:
            if step == self.steps - 1:
                self.predicted[clip] = x_0
            if len(self.predicted) == self.clips:
                x_0 = torch.cat([self.predicted[i] for i in range(self.clips)])
            self.callback(clip * self.steps + step, x_0, x, self.clips * self.steps)

        return report


def split_clips(latents: Tensor, frames: int) -> list[Tensor]:
    """(clips * N, c, h, w) -> clips of (N, c, h, w). ValueError for video latents, or when N does not divide."""
    if latents.ndim != 4:
        raise ValueError(
            f"reuse: the latent has the shape {tuple(latents.shape)}; it must be (frames, channels, height, width), "
            "as for image models"
        )
    if len(latents) % frames:
        raise ValueError(
            f"reuse: {len(latents)} frames cannot be divided into clips of {frames}; set the latent's batch size to a "
            f"multiple of {frames}"
        )
    return list(latents.split(frames))


def _parts(values: Tensor | None, clips: int, frames: int) -> Sequence[Tensor | None]:
    """Values per clip; values for a single frame, such as a mask, are used for all clips."""
    if values is None or len(values) != clips * frames:
        return [values] * clips
    return values.split(frames)


def _refuse_conditions_of_frames(guider: Any, total: int, frames: int) -> None:
    """ComfyUI repeats or cuts batched conditions to the batch of a call, so every clip would get the first part."""
    if total == frames:
        return
    for conditions in getattr(guider, "conds", {}).values():
        for condition in conditions or ():
            tensors = [getattr(c, "cond", None) for c in condition.get("model_conds", {}).values()]
            for tensor in (*tensors, *hints_of(condition.get("control"))):
                if isinstance(tensor, Tensor) and tensor.ndim > 1 and frames < len(tensor):
                    raise ValueError(
                        f"reuse: a condition has {len(tensor)} rows for {total} frames, but clips of {frames} frames "
                        "are sampled one after another; give conditions and control images that all clips share"
                    )
