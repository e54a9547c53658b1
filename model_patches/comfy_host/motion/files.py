"""Load a motion, HARIVO or VidRD file for ComfyUI, with its temporal layers in a ModelPatcher of their own.

ComfyUI then loads, offloads and casts them like any other model. The other weights of a VidRD file, the fine-tuned
blocks of the image model, are plain tensors here; `spatial` turns them into weight patches.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import torch
from comfy.model_management import throw_exception_if_processing_interrupted as interrupted
from torch import Tensor, nn

from ... import checkpoint, systems
from ...core.config import MotionConfig
from ...core.temporal import MotionModel
from ...harivo.config import HarivoConfig
from ...harivo.model import HarivoModel
from ...systems import HARIVO, MOTION, VIDRD
from ...vidrd.config import VidrdConfig
from ...vidrd.model import VidrdModel, is_temporal
from ..base.ops import operations

log = logging.getLogger(__name__)

ModelPatcher = comfy.model_patcher.ModelPatcher


@dataclass(frozen=True)
class LoadedMotion:
    """A loaded motion, HARIVO or VidRD file."""

    patcher: ModelPatcher
    config: MotionConfig | VidrdConfig
    info: str
    harivo: HarivoConfig | None = None
    """The configuration of a HARIVO file; None for any other file."""
    spatial: dict[str, Tensor] = field(default_factory=dict)
    """The fine-tuned blocks of a VidRD file, under the names in the file."""
    loras: tuple[Any, ...] = ()
    """The motion LoRAs on it, see `lora`."""


class Typed(nn.Module):
    """A module that tells ComfyUI the type of its weights."""

    dtype: torch.dtype

    def get_dtype(self) -> torch.dtype:
        return self.dtype


class HostedMotionModel(Typed, MotionModel):
    pass


class HostedHarivoModel(Typed, HarivoModel):
    pass


class HostedVidrdModel(Typed, VidrdModel):
    pass


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, options: dict[str, Any] | None = None) -> Tensor:
    """ComfyUI's attention; on a CPU torch's, because ComfyUI's default there is meant for thousands of tokens.

    options: transformer_options. ComfyUI runs the attention override of another node that is set there; it receives
    low_precision_attention=False, with which ComfyUI's own SageAttention leaves these short sequences to torch.
    """
    dispatch = comfy.ldm.modules.attention.optimized_attention
    if q.device.type == "cpu":
        dispatch = comfy.ldm.modules.attention.attention_pytorch
    return dispatch(q, k, v, heads, low_precision_attention=False, transformer_options=options)


def load_motion(path: Path | str) -> LoadedMotion:
    """Load a motion, HARIVO or VidRD file, or a DreamVideo file with a motion model. CheckpointError says what is wrong
    with any other file."""
    motion = hold(_read(path))
    motion.patcher.cached_patcher_init = (_reload, (str(path),))
    log.info("%s is %s", Path(path).name, motion.info)
    return motion


def hold(file: checkpoint.Checkpoint) -> LoadedMotion:
    """Prepare a motion model for ComfyUI. The tensors of `file` become its weights without a copy."""
    return HOSTED[file.system].hold(file, checkpoint.describe(file))


def temporal(model: Any) -> Any:
    """The temporal layers of a model, with their `modules_by_slot`."""
    return model.temporal if isinstance(model, HarivoModel) else model


def longest_clip(model: Any) -> int | None:
    """Frames of the longest clip for which the temporal layers have positions; None: any."""
    config = temporal(model).config
    return config.max_frames if isinstance(config, MotionConfig) else None


def patcher_of(module: Typed, weights: dict[str, Tensor], *, disable_dynamic: bool = False) -> ModelPatcher:
    """A ModelPatcher for a module on the meta device, with these tensors as its weights."""
    module.load_state_dict(weights, strict=True, assign=True)
    module.dtype = next(w.dtype for w in weights.values() if w.is_floating_point())
    module.eval().requires_grad_(False)
    comfy.model_management.archive_model_dtypes(module)
    # looked up here, not at import, because ComfyUI replaces the class when dynamic memory is on
    patcher_class = ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    device = comfy.model_management.get_torch_device()
    return patcher_class(module, load_device=device, offload_device=comfy.model_management.unet_offload_device())


def _reload(path: str, disable_dynamic: bool = False) -> ModelPatcher:
    """Called by ComfyUI for a second copy on several GPUs, or for one without dynamic memory with LoRA hooks."""
    return _patcher(_read(path), disable_dynamic=disable_dynamic)


def _read(path: Path | str) -> checkpoint.Checkpoint:
    file = checkpoint.load(path, expect=systems.with_layers(*HOSTED), look=interrupted)
    return file if file.system in HOSTED else checkpoint.motion_of(file)


def _patcher(file: checkpoint.Checkpoint, *, disable_dynamic: bool = False) -> ModelPatcher:
    hosted = HOSTED[file.system]
    with torch.device("meta"):  # the file's tensors become the weights; nothing is allocated twice
        module = hosted.module(file.config)
    weights = {name: weight for name, weight in file.weights.items() if hosted.is_layer(name)}
    return patcher_of(module, weights, disable_dynamic=disable_dynamic)


@dataclass(frozen=True)
class Hosted:
    """How the files of one system are loaded for ComfyUI."""

    module: Callable[[Mapping[str, Any]], Typed]
    """The module for a file's config, with ComfyUI's layers and attention."""
    hold: Callable[[checkpoint.Checkpoint, str], LoadedMotion]
    """Makes the loaded model from a file and the line that describes it."""
    is_layer: Callable[[str], bool] = lambda _name: True
    """Whether a weight belongs to the module."""


_LAYERS: dict[str, Any] = {"ops": operations, "attention": attention}


def _hold_motion(file: checkpoint.Checkpoint, info: str) -> LoadedMotion:
    return LoadedMotion(_patcher(file), MotionConfig.from_dict(file.config), info)


def _hold_harivo(file: checkpoint.Checkpoint, info: str) -> LoadedMotion:
    config = HarivoConfig.from_dict(file.config)
    return LoadedMotion(_patcher(file), config.motion, info, config)


def _hold_vidrd(file: checkpoint.Checkpoint, info: str) -> LoadedMotion:
    spatial = {name: weight for name, weight in file.weights.items() if not is_temporal(name)}
    return LoadedMotion(_patcher(file), VidrdConfig.from_dict(file.config), info, spatial=spatial)


HOSTED = {
    MOTION: Hosted(
        lambda config: HostedMotionModel(MotionConfig.from_dict(config), **_LAYERS),
        _hold_motion,
    ),
    HARIVO: Hosted(
        lambda config: HostedHarivoModel(HarivoConfig.from_dict(config), **_LAYERS),
        _hold_harivo,
    ),
    VIDRD: Hosted(
        lambda config: HostedVidrdModel(replace(VidrdConfig.from_dict(config), spatial=False), **_LAYERS),
        _hold_vidrd,
        is_temporal,
    ),
}
"""The systems whose files become a motion model of ComfyUI as they are."""
