"""The initial weights of a training of DreamVideo: the motion model of the primary U-Net, and the branch (section 5.1).

The paper starts from VidRD's model. Its temporal layers are trained further; the spatial layers that it fine-tuned
replace those of the frozen U-Net. A DreamVideo file is such a model with a branch. A motion file (AnimateDiff's
structure) can be combined with a branch as well; a DreamVideo file cannot store it, so that its layers stay frozen. The
branch is initialised with the U-Net's own down blocks and middle block, or with a ControlNet of the base.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...model_patches import checkpoint
from ...model_patches.checkpoint import Checkpoint
from ...model_patches.core.config import MotionConfig
from ...model_patches.core.temporal import MotionModel
from ...model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig
from ...model_patches.layouts import CheckpointError
from ...model_patches.systems import DREAMVIDEO, MOTION, VIDRD
from ...model_patches.vidrd.config import VidrdConfig
from ...model_patches.vidrd.model import VidrdModel, is_temporal
from ..plans.dreamvideo import DreamVideoModelTable, DreamVideoPlan
from ..plans.errors import ConfigError
from .bases import Base
from .clip_task import misfit
from .layers import layers_config

log = logging.getLogger(__name__)
HINTS = (16, 32, 96, 256)  # channels of conv_s, as many as the autoencoder has levels
BETAS = ("beta_schedule", "beta_start", "beta_end")
RULES = ("conv_layers", "group_norm", "embedding", *BETAS)  # settings that the weights of the layers do not determine


@dataclass(frozen=True)
class Start:
    """A model before the first training step."""

    config: DreamVideoConfig  # of the file that the training writes
    motion: Any  # the temporal layers of the primary U-Net: a VidrdModel without spatial layers, or a MotionModel
    tuned: Mapping[str, Tensor]  # VidRD's fine-tuned weights, by their names in the U-Net
    branch: Mapping[str, Tensor]  # its weights; empty: those of the U-Net


def load_start(plan: DreamVideoPlan, base: Base) -> Start:
    """Read the files that a config names. Raises ConfigError if one is missing or does not fit the config or base."""
    table, start = plan.model, Path(plan.model.start)
    file = _read(start, _start_file) if plan.model.start else None
    if file is not None and file.system == MOTION:
        model, tuned, layers = _motion_layers(table, file, start, base), {}, None
    else:
        model, tuned = _layers(table, file, start, base, plan.data.frames)
        layers = replace(model.config, spatial=bool(tuned)).to_dict()
    config = DreamVideoConfig(branch=branch_config(table, base), layers=layers, motion=table.motion)
    branch: Mapping[str, Tensor] = {}
    if file is not None and file.system == DREAMVIDEO:
        branch = _branch(file, config.branch, start)
    if table.controlnet:
        branch = _controlnet(Path(table.controlnet), config.branch)
    if file is not None:
        log.info("training starts from the motion model%s of %s", " and the branch" if branch else "", start)
    return Start(config, model, tuned, branch)


def copy_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy those weights into a module that it has as well."""
    state = module.state_dict()
    with torch.no_grad():
        for name in state.keys() & weights.keys():
            state[name].copy_(weights[name])


def branch_config(table: DreamVideoModelTable, base: Base) -> RetentionConfig:
    """The configuration of the branch for this base."""
    sizes = layers_config(table, base, 1)
    unet: Any = base.unet.config
    return RetentionConfig(
        block_channels=sizes.block_channels,
        attention=sizes.attention,
        heads=sizes.heads,
        layers_per_block=sizes.layers_per_block,
        context_dim=sizes.context_dim,
        linear_projection=bool(unet.get("use_linear_projection")),
        hint_channels=HINTS[: len(base.config.vae_channels)],
        image_range=table.image_range,
        inject=table.inject,
        temporal=table.temporal,
    )


def _start_file(path: Path) -> Checkpoint:
    return checkpoint.load(path, expect=(VIDRD, DREAMVIDEO, MOTION))


def _read(path: Path, load: Callable[[Path], Checkpoint]) -> Checkpoint:
    try:
        return load(path)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def _motion_of(file: Checkpoint) -> Checkpoint:
    """The motion model of a checkpoint. Raises ConfigError when it holds only a branch."""
    try:
        return checkpoint.motion_of(file)
    except CheckpointError as error:
        raise ConfigError(f"model.start: {error}") from error


def _layers(
    table: DreamVideoModelTable, file: Checkpoint | None, path: Path, base: Base, frames: int
) -> tuple[VidrdModel, dict[str, Tensor]]:
    """VidRD's temporal layers, new ones or those of a file, and the spatial weights in the file."""
    model = VidrdModel(layers_config(table, base, frames))
    if file is None:
        if not table.motion:
            raise ConfigError("model.motion is false and model.start is empty: give a file with a motion model")
        return model, {}
    file = _motion_of(file)
    _check_rules(table, VidrdConfig.from_dict(file.config), RULES, path)
    weights = {name: value for name, value in file.weights.items() if is_temporal(name)}
    _check_sizes(model, weights, path)
    copy_weights(model, weights)
    tuned = {name: value for name, value in file.weights.items() if not is_temporal(name)}
    missing = sorted(tuned.keys() - base.unet.state_dict().keys())
    if missing:
        raise misfit(path, missing[0])
    return model, tuned


def _motion_layers(table: DreamVideoModelTable, file: Checkpoint, path: Path, base: Base) -> MotionModel:
    """The layers of a motion file, which are not trained."""
    config = MotionConfig.from_dict(file.config)
    if table.motion or table.temporal != "none":
        raise ConfigError(
            f"{path.name} is a motion file, whose layers are not trained here: set model.motion = false and "
            "model.temporal = 'none' to train only the branch, or start from a VidRD file"
        )
    if (config.block_channels, config.layers_per_block) != (base.config.unet_channels, base.config.unet_layers):
        raise misfit(path, "block_channels")
    _check_rules(table, config, BETAS, path)
    model = MotionModel(config)
    model.load_state_dict({name: value.float() for name, value in file.weights.items()})
    return model


def _branch(file: Checkpoint, config: RetentionConfig, path: Path) -> dict[str, Tensor]:
    """The branch of a DreamVideo file."""
    file_config = DreamVideoConfig.from_dict(file.config).branch.to_dict()
    mismatch = next((name for name, value in config.to_dict().items() if file_config[name] != value), None)
    if mismatch is not None:
        raise misfit(path, mismatch)
    return {k.removeprefix("branch."): v for k, v in file.weights.items() if k.startswith("branch.")}


def _controlnet(path: Path, config: RetentionConfig) -> dict[str, Tensor]:
    """The weights of a ControlNet for the branch; a ControlNet does not have the branch's frozen temporal layers."""
    file = _read(path, checkpoint.load_controlnet)
    file_config = DreamVideoConfig.from_dict(file.config).branch
    sizes = ("block_channels", "attention", "layers_per_block", "context_dim", "linear_projection", "hint_channels")
    names = (*sizes, "inject")
    mismatch = next((name for name in names if getattr(file_config, name) != getattr(config, name)), None)
    if mismatch is not None:
        raise ConfigError(
            f"model.controlnet: {path.name} does not fit ({mismatch} is {getattr(file_config, mismatch)}, but must be "
            f'{getattr(config, mismatch)}); choose a ControlNet of the same base, and model.inject = "skips"'
        )
    log.info("the branch is initialised with %s", path)
    return {k.removeprefix("branch."): v for k, v in file.weights.items()}


def _check_rules(table: DreamVideoModelTable, config: Any, rules: tuple[str, ...], path: Path) -> None:
    for name in rules:
        value, setting = getattr(config, name), getattr(table, name)
        if value is not None and value != setting:
            raise ConfigError(f"model.{name} is {setting!r}, but {path.name} was trained with {value!r}; use {value!r}")


def _check_sizes(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    state = model.state_dict()
    mismatches = sorted(k for k in state if k not in weights or weights[k].shape != state[k].shape)
    if mismatches:
        raise misfit(path, mismatches[0])
