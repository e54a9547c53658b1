"""Load an ART-V file for ComfyUI, with all parts in one ModelPatcher, which ComfyUI loads and offloads."""

import logging
from dataclasses import dataclass
from pathlib import Path

import comfy.model_patcher
import torch
from comfy.model_management import throw_exception_if_processing_interrupted as interrupted

from ... import checkpoint
from ...artv.config import ArtvConfig
from ...artv.model import ArtvModel
from ...systems import ARTV
from ..base.ops import operations
from ..motion.files import Typed, attention, patcher_of

log = logging.getLogger(__name__)
ModelPatcher = comfy.model_patcher.ModelPatcher


class HostedArtvModel(Typed, ArtvModel):
    pass


@dataclass(frozen=True)
class LoadedArtv:
    """A loaded ART-V file."""

    config: ArtvConfig
    patcher: ModelPatcher
    path: Path
    info: str


def load_artv(path: Path | str) -> LoadedArtv:
    """Load an ART-V file. CheckpointError says what is wrong with any other file."""
    artv = hold_artv(checkpoint.load(path, expect=ARTV, look=interrupted), Path(path))
    artv.patcher.cached_patcher_init = (_reload, (str(path),))
    log.info("%s is %s", Path(path).name, artv.info)
    return artv


def hold_artv(file: checkpoint.Checkpoint, path: Path) -> LoadedArtv:
    """Prepare an ART-V model for ComfyUI. The tensors of `file` become its weights without a copy."""
    return LoadedArtv(ArtvConfig.from_dict(file.config), _patcher(file), path, checkpoint.describe(file))


def _reload(path: str, disable_dynamic: bool = False) -> ModelPatcher:
    """Called by ComfyUI for a second copy on several GPUs, or for one without dynamic memory with LoRA hooks."""
    return _patcher(checkpoint.load(path, expect=ARTV, look=interrupted), disable_dynamic=disable_dynamic)


def _patcher(file: checkpoint.Checkpoint, *, disable_dynamic: bool = False) -> ModelPatcher:
    with torch.device("meta"):  # the file's tensors become the weights; nothing is allocated twice
        module = HostedArtvModel(ArtvConfig.from_dict(file.config), ops=operations, attention=attention)
    return patcher_of(module, file.weights, disable_dynamic=disable_dynamic)
