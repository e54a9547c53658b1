"""The mitigating gradient as a post-CFG function of a ComfyUI MODEL, and the record of its effect.

The function gets the guided x_0 of every model call, with any sampler, and returns the changed one. It is the last step
between the guidance and the sampler, after context windows have been combined.
"""

import hashlib
import logging
import math
import uuid
from collections import deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.levels import sigma_from_flow
from ...harivo.mitigating import BANDWIDTHS, JACOBIANS, KERNELS, Config, Effect, effective_alpha, mitigate

__all__ = ["BANDWIDTHS", "JACOBIANS", "KERNELS", "Config", "Readout", "apply_mitigating_gradient"]

log = logging.getLogger(__name__)

MAX_RUNS = 16


class Call(NamedTuple):
    """One model call of a run; names as in `Effect`. Samplers of higher order call the model twice per step."""

    sigma: float  # VE
    alpha: float
    eps_ratio: float
    before: float
    after: float


@dataclass
class Run:
    """One sampling run in progress. Effects stay on the device, so that recording never waits for it."""

    settings: str
    _sigmas: list[float] = field(default_factory=list)
    _effects: list[Tensor] = field(default_factory=list)

    def record(self, sigma: float, effect: Effect) -> None:
        self._sigmas.append(sigma)
        self._effects.append(torch.stack([effect.alpha, effect.eps_ratio, effect.before, effect.after]))

    @property
    def calls(self) -> int:
        return len(self._sigmas)

    def finish(self, result: Tensor) -> "Record":
        effects = torch.stack(self._effects).tolist() if self._effects else []
        calls = [Call(sigma, *effect) for sigma, effect in zip(self._sigmas, effects, strict=True)]
        return Record(self.settings, tuple(calls), fingerprint(result))


@dataclass(frozen=True)
class Record:
    """One finished run: its settings as text, its calls, and the fingerprint of its result."""

    settings: str
    calls: tuple[Call, ...]
    result: str

    def summary(self) -> str:
        active = [call for call in self.calls if call.alpha]
        if not active:
            return f"{self.settings}: {len(self.calls)} model calls, none of them changed"
        mean = sum(call.eps_ratio for call in active) / len(active)
        closer = sum(1 - call.after / call.before for call in active) / len(active)
        return (
            f"{self.settings}: changed {len(active)} of {len(self.calls)} model calls, "
            f"noise prediction changed by {mean:.1%} on average, frames closer by {closer:.1%} per call, "
            f"adjacent-frame difference {active[0].before:.4f} at the start, {active[-1].after:.4f} at the end"
        )

    def table(self) -> str:
        rows = [f"{'call':>4} {'sigma':>9} {'alpha':>8} {'d eps/eps':>9}   difference before -> after"]
        for number, call in enumerate(self.calls, 1):
            change = f"{call.after / call.before - 1:+8.1%}" if call.before else ""
            rows.append(
                f"{number:>4} {call.sigma:>9.3f} {call.alpha:>8.2f} {call.eps_ratio:>9.4f}"
                f"   {call.before:>9.5f} -> {call.after:.5f} {change}"
            )
        return "\n".join([self.summary(), *rows])


class Readout:
    """The last runs of one patched MODEL, identified by the latent that they produced.

    ComfyUI may pass a cached latent of an earlier run to the readout, or run two samplers with one MODEL, so the latest
    run is not always the right one.
    """

    def __init__(self) -> None:
        self.records: deque[Record] = deque(maxlen=MAX_RUNS)

    def of(self, latent: Tensor) -> Record | None:
        """The run that produced `latent`, or None if it is not one of the last runs or was changed since."""
        digest = fingerprint(latent)
        return next((record for record in reversed(self.records) if record.result == digest), None)

    def find(self, latent: Tensor) -> tuple[Record | None, str]:
        """The run that produced `latent`, or the latest run, or None; and a remark on this choice."""
        if record := self.of(latent):
            return record, ""
        if self.records:
            return self.records[-1], "This latent was changed after sampling; the latest run of this model was:\n"
        return None, (
            "There is no record of a run: the latent was not sampled with this model, or it came from the cache after "
            "the record was removed. Change the seed and queue again."
        )

    def describe(self, latent: Tensor) -> str:
        """The remark and table of `find`, as text."""
        record, remark = self.find(latent)
        return remark + record.table() if record else remark


def fingerprint(latent: Tensor) -> str:
    """A hash that is equal for a sampler's result and for the output of its node; empty for nested latents."""
    if latent.is_nested:
        return ""
    wire = latent.detach().to(device="cpu", dtype=comfy.model_management.intermediate_dtype()).contiguous()
    return hashlib.sha256(wire.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


class MitigatingGradientPatch:
    """`mitigate` on the x_0 of each model call inside [start_percent, end_percent] of the schedule.

    It stores nothing of a run: the `Run` is in the options, which ComfyUI copies for every run.
    """

    def __init__(self, config: Config, frames: int, start_percent: float, end_percent: float) -> None:
        self.config, self.idle = config, replace(config, alpha=0.0)
        self.frames = frames
        self.percents = start_percent, end_percent
        self.readout = Readout()
        self.key = f"stillmotion.mitigating_gradient.{uuid.uuid4().hex}"

    def outer_sample(self, executor, noise: Tensor, *args, **kwargs) -> Tensor:
        """Wrapper around a whole run, called before models are loaded."""
        frames = video_frames(noise, self.frames)
        if frames == 1:
            log.warning("mitigating gradient: the video has only one frame; it is not changed")
        run = Run(self._settings(noise, frames))
        executor.class_obj.model_options["transformer_options"][self.key] = run
        result = executor(noise, *args, **kwargs)
        record = run.finish(result)
        self.readout.records.append(record)
        log.info("%s", record.summary())
        return result

    def predict_noise(self, executor, x: Tensor, timestep: Tensor, model_options: dict | None = None, *args, **kwargs):
        """Wrapper around one guided model call, which detects guiders that do not run post-CFG functions."""
        run = self._run(model_options)
        calls = run.calls if run else 0
        result = executor(x, timestep, model_options, *args, **kwargs)
        if run and run.calls == calls:
            raise RuntimeError(
                "mitigating gradient: it has no effect, because the guider in use does not run post-CFG functions; "
                "use KSampler, CFGGuider or BasicGuider, or remove the node"
            )
        return result

    def __call__(self, args: dict) -> Tensor:
        """The post-CFG function."""
        x0, sampling = args["denoised"], args["model"].model_sampling
        level = args["sigma"].flatten()[0].float()
        sigma, eps = noise_of(args["input"], x0, level, flow=isinstance(sampling, comfy.model_sampling.CONST))
        start, end = (sampling.percent_to_sigma(percent) for percent in self.percents)
        config = self.config if end < level.item() <= start else self.idle
        result, effect = mitigate(x0, eps, sigma, config, frames=self.frames)
        if run := self._run(args["model_options"]):
            run.record(sigma, effect)
        return result

    def _run(self, model_options: dict | None) -> Run | None:
        return ((model_options or {}).get("transformer_options") or {}).get(self.key)

    def _settings(self, noise: Tensor, frames: int) -> str:
        config, elements = self.config, math.prod(noise.shape[1:]) // (frames if noise.ndim == 5 else 1)
        alpha = effective_alpha(config, frames=frames, elements=elements) if frames > 1 else config.alpha
        return (
            f"mitigating gradient: alpha {config.alpha:g} ({alpha:.3g} for {frames} frames of {elements} elements), "
            f"{config.kernel}, {config.bandwidth}, {config.jacobian}"
        )


def noise_of(x: Tensor, x0: Tensor, level: Tensor, *, flow: bool) -> tuple[float, Tensor]:
    """The VE sigma and the predicted eps in float32, from the prediction x_0.

    They follow from x = x_0 + sigma eps, or for flow models with level s from x = (1 - s) x_0 + s eps.
    """
    if flow:
        eps = (x.float() - (1 - level) * x0.float()) / level
        return sigma_from_flow(level).item(), eps
    return level.item(), (x.float() - x0.float()) / level


def video_frames(latent: Tensor, frames: int, subject: str = "mitigating gradient") -> int:
    """Frames of one video. ValueError when the latent is not a video, or `frames` does not divide its batch."""
    if latent.ndim == 5:
        return latent.shape[2]
    if latent.ndim != 4:
        raise ValueError(
            f"{subject}: the latent has the shape {tuple(latent.shape)}; it must have the axes "
            "(batch, channels, height, width) or (batch, channels, frames, height, width), and not be nested"
        )
    if latent.shape[0] % frames:
        raise ValueError(
            f"{subject}: the batch has {latent.shape[0]} latents, which cannot be split into videos of "
            f"{frames} frames; set frames to the batch size, or to a divisor of it if the batch has several videos"
        )
    return frames


def apply_mitigating_gradient(
    model: comfy.model_patcher.ModelPatcher,
    config: Config,
    *,
    frames: int,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
) -> tuple[comfy.model_patcher.ModelPatcher, Readout]:
    """A clone of `model` that samples with the mitigating gradient, and the readout of its runs.

    frames: of one video, for latents whose frames are in the batch; not used for latents with a frame axis.
    start_percent, end_percent: the part of the schedule; 0 is pure noise, 1 the finished latent.

    Raises ValueError when frames is below 1 or the percents are not 0 <= start <= end <= 1.
    """
    if frames < 1:
        raise ValueError(f"mitigating gradient: frames is {frames}; give the number of frames of one video, at least 1")
    if not 0 <= start_percent <= end_percent <= 1:
        raise ValueError(
            f"mitigating gradient: start_percent is {start_percent} and end_percent is {end_percent}; "
            "start_percent must not be above end_percent, and both must be between 0 and 1"
        )
    patch = MitigatingGradientPatch(config, frames, start_percent, end_percent)
    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(patch)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, patch.key, patch.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, patch.key, patch.predict_noise)
    return patched, patch.readout
