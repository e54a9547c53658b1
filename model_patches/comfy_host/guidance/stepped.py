"""HARIVO's stepped guidance as the CFG function of a ComfyUI MODEL."""

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...harivo.stepped import EARLY, LATE, SWITCH, SteppedScale

__all__ = ["EARLY", "LATE", "SWITCH", "SteppedScale", "apply_stepped_cfg"]

log = logging.getLogger(__name__)
CFG_FUNCTION = "sampler_cfg_function"


@dataclass
class Calls:
    """Calls of the CFG function in one run."""

    count: int = 0


class SteppedCFGPatch:
    """x_0 = uncond + scale(t) (cond - uncond), or another CFG function with that scale. It stores nothing of a run."""

    def __init__(self, scale: SteppedScale, inner: Callable[[dict], Tensor] | None) -> None:
        self.scale, self.inner = scale, inner
        self.key = f"stillmotion.stepped_cfg.{uuid.uuid4().hex}"

    def __call__(self, args: dict) -> Tensor:
        """The CFG function for ComfyUI, whose inputs and result are x - x_0."""
        if calls := _calls(args["model_options"], self.key):
            calls.count += 1
        cond, uncond = args["cond"], args["uncond"]
        if args["input_uncond"] is None:
            raise ValueError(
                "stepped CFG: the guider has no negative conditioning; use KSampler or CFGGuider, or remove the node"
            )
        scale = self.at(args["sigma"], args["model"].model_sampling)
        if self.inner is not None:
            return self.inner(args | {"cond_scale": scale})
        return uncond + scale * (cond - uncond)

    def at(self, sigma: Tensor, sampling: Any) -> float:
        """The scale at a noise level. Times are compared as levels, converted as ComfyUI converts start and end."""
        level = float(sigma.flatten()[0])
        steps = self.scale.steps
        return next((scale for t, scale in steps if level > sampling.percent_to_sigma(1 - t)), steps[-1][1])

    def outer_sample(self, executor, *args, **kwargs) -> Tensor:
        """Wrapper around a whole run."""
        executor.class_obj.model_options["transformer_options"][self.key] = Calls()
        return executor(*args, **kwargs)

    def predict_noise(self, executor, x: Tensor, timestep: Tensor, model_options: dict | None = None, *args, **kwargs):
        """Wrapper around one guided model call, which detects that the CFG function was not called."""
        calls = _calls(model_options, self.key)
        previous = calls.count if calls else 0
        result = executor(x, timestep, model_options, *args, **kwargs)
        if calls and calls.count == previous:
            raise RuntimeError(
                "stepped CFG: it has no effect, because a later node set another CFG function, or the guider in use "
                "has its own; connect Stepped CFG after that node, or use KSampler or CFGGuider"
            )
        return result


def _calls(model_options: dict | None, key: str) -> Calls | None:
    return ((model_options or {}).get("transformer_options") or {}).get(key)


def apply_stepped_cfg(model: comfy.model_patcher.ModelPatcher, scale: SteppedScale) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` that is guided at `scale`; the sampler's own cfg is not used.

    A CFG function that is already set on the MODEL (RescaleCFG, ...) is called with this scale. Post-CFG functions such
    as the mitigating gradient still run after it.
    """
    inner: Any = model.model_options.get(CFG_FUNCTION)
    if inner is not None:
        log.warning("stepped CFG: the CFG function that is already set on this MODEL is called with the stepped scale")
    patch = SteppedCFGPatch(scale, inner)
    patched = model.clone()
    # both predictions are needed even if the sampler's cfg is 1
    patched.set_model_sampler_cfg_function(patch, disable_cfg1_optimization=True)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, patch.key, patch.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, patch.key, patch.predict_noise)
    return patched
