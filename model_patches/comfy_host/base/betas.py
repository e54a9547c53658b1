"""Replace the noise levels of a ComfyUI MODEL by those of other betas, with an object patch."""

from typing import Any

import comfy.model_patcher
import comfy.model_sampling

from ...core.levels import BETA_END, BETA_START, SCHEDULES, sigmas

__all__ = ["BETA_END", "BETA_START", "SCHEDULES", "apply_betas", "set_betas"]

ModelPatcher = comfy.model_patcher.ModelPatcher


def apply_betas(
    model: ModelPatcher, schedule: str = "linear", start: float = BETA_START, end: float = BETA_END
) -> ModelPatcher:
    """A clone of `model` whose noise levels come from these betas (`core.levels.betas`).

    ValueError when the MODEL has no table of noise levels, or the betas are invalid.
    """
    patched = model.clone()
    if not set_betas(patched, schedule, start, end):
        raise ValueError(
            f"model sampling betas: this MODEL samples with {_name(model)}, whose noise levels do not come from betas; "
            "use this node with a model that predicts eps or v, such as Stable Diffusion"
        )
    return patched


def set_betas(model: ModelPatcher, schedule: str, start: float, end: float) -> bool:
    """Replace the noise levels of `model`, which must be a clone of ours. False if it has no table of noise levels."""
    sampling: Any = model.get_model_object("model_sampling")
    if type(sampling).timestep is not comfy.model_sampling.ModelSamplingDiscrete.timestep:
        return False
    levels = sigmas(schedule, start, end)
    if getattr(sampling, "zsnr", False):  # the last level has no signal
        levels = comfy.model_sampling.rescale_zero_terminal_snr_sigmas(levels)
    new_sampling: Any = type(sampling)(model.model.model_config)
    new_sampling.zsnr = getattr(sampling, "zsnr", False)
    new_sampling.set_sigmas(levels)
    model.add_object_patch("model_sampling", new_sampling)
    return True


def _name(model: ModelPatcher) -> str:
    return type(model.get_model_object("model_sampling")).__name__
