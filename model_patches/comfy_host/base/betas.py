"""Replace the noise levels of a ComfyUI MODEL by those of other betas, with an object patch.

A sampling class of ComfyUI has a table of noise levels: one for each of the 1000 timesteps, or every k-th of them for
distilled models (LCM has every 20th). Such a table is thinned in the same way here.
"""

from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.model_sampling
import torch
from torch import Tensor

from ...core.levels import BETA_END, BETA_START, SCHEDULES, sigmas

__all__ = ["BETA_END", "BETA_START", "SCHEDULES", "Betas", "apply_betas", "is_thinned", "same_levels", "set_betas"]

ModelPatcher = comfy.model_patcher.ModelPatcher


@dataclass(frozen=True)
class Betas:
    """The forward variances of a training: a schedule of `core.levels` and its ends."""

    schedule: str = "linear"
    start: float = BETA_START
    end: float = BETA_END

    def levels(self, sampling: Any) -> Tensor | None:
        """The table of noise levels, ascending, that `sampling` has with these betas.

        None if its noise levels do not come from betas.
        """
        places = _timesteps(sampling)
        if places is None:
            return None
        levels = sigmas(self.schedule, self.start, self.end, sampling.num_timesteps)
        if getattr(sampling, "zsnr", False):  # the last level has no signal
            levels = comfy.model_sampling.rescale_zero_terminal_snr_sigmas(levels)
        return levels[places]


def apply_betas(
    model: ModelPatcher, schedule: str = "linear", start: float = BETA_START, end: float = BETA_END
) -> ModelPatcher:
    """A clone of `model` whose noise levels come from these betas (`core.levels.betas`).

    ValueError when the MODEL has no table of noise levels, or the betas are invalid.
    """
    patched = model.clone()
    if not set_betas(patched, Betas(schedule, start, end)):
        raise ValueError(
            f"model sampling betas: this MODEL samples with {_name(model)}, whose noise levels do not come from betas; "
            "use this node with a model that predicts eps or v, such as Stable Diffusion"
        )
    return patched


def set_betas(model: ModelPatcher, betas: Betas) -> bool:
    """Replace the noise levels of `model`, which must be a clone of ours. False if they do not come from betas."""
    sampling: Any = model.get_model_object("model_sampling")
    levels = betas.levels(sampling)
    if levels is None:
        return False
    new_sampling: Any = type(sampling)(model.model.model_config)
    new_sampling.zsnr = getattr(sampling, "zsnr", False)
    new_sampling.set_sigmas(levels)
    model.add_object_patch("model_sampling", new_sampling)
    return True


def same_levels(sampling: Any, betas: Betas) -> bool:
    """Whether the noise levels of `sampling` are those of these betas."""
    levels = betas.levels(sampling)
    return levels is not None and torch.allclose(sampling.sigmas.cpu().double(), levels, rtol=1e-3)


def is_thinned(sampling: Any) -> bool:
    """Whether `sampling` has a table of every k-th noise level, like LCM's."""
    places = _timesteps(sampling)
    return places is not None and len(places) < sampling.num_timesteps


def _timesteps(sampling: Any) -> Tensor | None:
    """The timestep of each entry of the table of `sampling`; None unless it is a table of all or every k-th of them."""
    if not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
        return None
    levels: Any = sampling.sigmas
    skip = sampling.num_timesteps // len(levels)
    places = sampling.num_timesteps - 1 - skip * torch.arange(len(levels)).flip(0)
    timesteps = sampling.timestep(levels).cpu()
    return places if not timesteps.is_floating_point() and torch.equal(timesteps, places) else None


def _name(model: ModelPatcher) -> str:
    return type(model.get_model_object("model_sampling")).__name__
