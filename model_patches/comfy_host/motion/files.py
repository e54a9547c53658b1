"""A motion, HARIVO or VidRD file as ComfyUI holds it: its temporal layers in a ModelPatcher of their own.

ComfyUI then loads, offloads and casts them like any other model. What a VidRD file has beside them, the fine-tuned
blocks of the image model, are plain tensors here: `vidrd` makes weight patches of them.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ... import checkpoint
from ...core.config import MotionConfig
from ...core.temporal import MotionModel
from ...harivo.config import HarivoConfig
from ...harivo.model import HarivoModel
from ...vidrd.config import VidrdConfig
from ...vidrd.model import VidrdModel, is_temporal
from ..base.ops import operations

log = logging.getLogger(__name__)

READ = (checkpoint.MOTION, checkpoint.HARIVO, checkpoint.VIDRD, checkpoint.DREAMVIDEO)
ModelPatcher = comfy.model_patcher.ModelPatcher


@dataclass(frozen=True)
class LoadedMotion:
    """A motion, HARIVO or VidRD file as ComfyUI holds it."""

    patcher: ModelPatcher
    config: MotionConfig | VidrdConfig
    info: str
    harivo: HarivoConfig | None = None
    """What a HARIVO file holds beside the temporal layers; None for any other."""
    spatial: dict[str, Tensor] = field(default_factory=dict)
    """The fine-tuned blocks of a VidRD file, under their names there."""


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


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """ComfyUI's attention. Its choice for the CPU is made for thousands of tokens; frames are few, so torch's there."""
    if q.device.type == "cpu":
        return comfy.ldm.modules.attention.attention_pytorch(q, k, v, heads)
    return comfy.ldm.modules.attention.optimized_attention(q, k, v, heads, low_precision_attention=False)


def load_motion(path: Path | str) -> LoadedMotion:
    """Read a motion, HARIVO or VidRD file, or a DreamVideo file that has a motion model. CheckpointError says what is
    wrong with any other file."""
    motion = hold(_read(path))
    motion.patcher.cached_patcher_init = (_reload, (str(path),))
    log.info("%s is %s", Path(path).name, motion.info)
    return motion


def hold(file: checkpoint.Checkpoint) -> LoadedMotion:
    """A motion model in ComfyUI's hands. The tensors of `file` become its weights, without a copy."""
    info = checkpoint.describe(file)
    if file.system == checkpoint.HARIVO:
        config = HarivoConfig.from_dict(file.config)
        return LoadedMotion(_patcher(file), config.motion, info, config)
    if file.system == checkpoint.VIDRD:
        spatial = {k: v for k, v in file.weights.items() if not is_temporal(k)}
        return LoadedMotion(_patcher(file), VidrdConfig.from_dict(file.config), info, spatial=spatial)
    return LoadedMotion(_patcher(file), MotionConfig.from_dict(file.config), info)


def temporal(model: Any) -> Any:
    """The temporal layers of what a file holds, with their `modules_by_slot`."""
    return model.temporal if isinstance(model, HarivoModel) else model


def longest_clip(model: Any) -> int | None:
    """Frames of the longest clip that the temporal layers know positions for; None: any."""
    config = temporal(model).config
    return config.max_frames if isinstance(config, MotionConfig) else None


def patcher_of(module: Typed, weights: dict[str, Tensor], *, disable_dynamic: bool = False) -> ModelPatcher:
    """A ModelPatcher on a module that was built on the meta device, with these tensors as its weights."""
    module.load_state_dict(weights, strict=True, assign=True)
    module.dtype = next(w.dtype for w in weights.values() if w.is_floating_point())
    module.eval().requires_grad_(False)
    comfy.model_management.archive_model_dtypes(module)
    # looked up here, not at import: ComfyUI exchanges the class when dynamic memory is on
    patcher_class = ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    device = comfy.model_management.get_torch_device()
    return patcher_class(module, load_device=device, offload_device=comfy.model_management.unet_offload_device())


def _reload(path: str, disable_dynamic: bool = False) -> ModelPatcher:
    """ComfyUI asks for a second copy on several GPUs, and for one without dynamic memory under LoRA hooks."""
    return _patcher(_read(path), disable_dynamic=disable_dynamic)


def _read(path: Path | str) -> checkpoint.Checkpoint:
    return checkpoint.motion_of(checkpoint.load(path, expect=READ))


def _patcher(file: checkpoint.Checkpoint, *, disable_dynamic: bool = False) -> ModelPatcher:
    weights = file.weights
    if file.system == checkpoint.VIDRD:
        weights = {k: v for k, v in weights.items() if is_temporal(k)}
    with torch.device("meta"):  # the file's tensors become the weights; nothing is allocated twice
        module = _module(file)
    return patcher_of(module, weights, disable_dynamic=disable_dynamic)


def _module(file: checkpoint.Checkpoint) -> Typed:
    parts = {"ops": operations, "attention": attention}
    if file.system == checkpoint.HARIVO:
        return HostedHarivoModel(HarivoConfig.from_dict(file.config), **parts)
    if file.system == checkpoint.VIDRD:
        return HostedVidrdModel(replace(VidrdConfig.from_dict(file.config), spatial=False), **parts)
    return HostedMotionModel(MotionConfig.from_dict(file.config), **parts)
