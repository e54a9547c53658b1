"""An ART-V file as ComfyUI holds it: all its parts in a ModelPatcher of their own, which ComfyUI loads and offloads."""

import logging
from dataclasses import dataclass
from pathlib import Path

import comfy.model_patcher
import torch

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
    """An ART-V file as ComfyUI holds it."""

    config: ArtvConfig
    patcher: ModelPatcher
    path: Path
    info: str


def load_artv(path: Path | str) -> LoadedArtv:
    """Read an ART-V file. CheckpointError says what is wrong with any other."""
    found = hold_artv(checkpoint.load(path, expect=ARTV), Path(path))
    found.patcher.cached_patcher_init = (_reload, (str(path),))
    log.info("%s is %s", Path(path).name, found.info)
    return found


def hold_artv(file: checkpoint.Checkpoint, path: Path) -> LoadedArtv:
    """An ART-V model in ComfyUI's hands. The tensors of `file` become its weights, without a copy."""
    return LoadedArtv(ArtvConfig.from_dict(file.config), _patcher(file), path, checkpoint.describe(file))


def _reload(path: str, disable_dynamic: bool = False) -> ModelPatcher:
    """ComfyUI asks for a second copy on several GPUs, and for one without dynamic memory under LoRA hooks."""
    return _patcher(checkpoint.load(path, expect=ARTV), disable_dynamic=disable_dynamic)


def _patcher(file: checkpoint.Checkpoint, *, disable_dynamic: bool = False) -> ModelPatcher:
    with torch.device("meta"):  # the file's tensors become the weights; nothing is allocated twice
        module = HostedArtvModel(ArtvConfig.from_dict(file.config), ops=operations, attention=attention)
    return patcher_of(module, file.weights, disable_dynamic=disable_dynamic)
