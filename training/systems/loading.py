"""Loads HARIVO and motion files as models for diffusers."""

from pathlib import Path

from torch import Tensor

from ...model_patches import checkpoint
from ...model_patches.core.config import MotionConfig
from ...model_patches.core.levels import alpha_bars
from ...model_patches.harivo.config import HarivoConfig
from ...model_patches.harivo.model import HarivoModel
from ...model_patches.systems import HARIVO, MOTION


def load_harivo(path: Path) -> HarivoModel:
    """Load a HARIVO file, or a motion file as a HARIVO model that has only temporal layers."""
    return harivo_of(checkpoint.load(path, expect=(HARIVO, MOTION)))


def harivo_of(file: checkpoint.Checkpoint) -> HarivoModel:
    """The model of a HARIVO or motion checkpoint."""
    weights = {name: value.float() for name, value in file.weights.items()}
    if file.system == HARIVO:
        model = HarivoModel(HarivoConfig.from_dict(file.config))
        model.load_state_dict(weights)
    else:
        model = HarivoModel(HarivoConfig(motion=MotionConfig.from_dict(file.config)))
        model.temporal.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def _part(model: HarivoModel, name: str, path: Path):
    part = getattr(model, name)
    if part is None:
        raise ValueError(f"{path.name} was trained without {name}; choose a file that contains it")
    return part


def levels_of(model: HarivoModel) -> Tensor:
    """alpha_bar of the timesteps with which a model was trained."""
    return alpha_bars(model.config.motion.beta_schedule or "scaled_linear").float()
