"""Models that combine parts of two papers, whose packages do not depend on each other."""

from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from .core.temporal import Attention, sdpa
from .dreamvideo.config import DreamVideoConfig
from .dreamvideo.model import DreamVideoModel
from .dreamvideo.retention import RetentionBranch
from .vidrd.config import VidrdConfig
from .vidrd.model import VidrdModel

Branch = TypeVar("Branch", bound=RetentionBranch)


def retention_branch(
    config: DreamVideoConfig, *, kind: type[Branch] = RetentionBranch, ops: Any = nn, attention: Attention = sdpa
) -> Branch:
    """The branch of a DreamVideo model, with VidRD's temporal layers in the down and middle blocks if it has any.

    kind: the class of the branch, for hosts. ValueError when the branch and these layers are for different U-Nets.
    """
    parts: dict[str, Any] = {"ops": ops, "attention": attention}
    if config.branch.temporal == "none":
        return kind(config.branch, **parts)
    layers = replace(_layers(config), spatial=False)
    temporal = VidrdModel(layers, parts=("down", "mid"), **parts)
    return kind(config.branch, temporal=temporal, **parts)


def dreamvideo_model(config: DreamVideoConfig, *, ops: Any = nn, attention: Attention = sdpa) -> DreamVideoModel:
    """The branch, and the temporal layers of the primary U-Net if the model has them. ValueError as above."""
    branch = retention_branch(config, ops=ops, attention=attention)
    motion = VidrdModel(_layers(config), ops=ops, attention=attention) if config.motion else None
    return DreamVideoModel(branch, motion)


def _layers(config: DreamVideoConfig) -> VidrdConfig:
    assert config.layers is not None  # DreamVideoConfig checks this
    layers, branch = VidrdConfig.from_dict(config.layers), config.branch
    for name in ("block_channels", "attention", "layers_per_block"):
        if getattr(layers, name) != getattr(branch, name):
            raise ValueError(
                f"DreamVideo config: {name} is {getattr(branch, name)} in the branch and {getattr(layers, name)} in "
                "the temporal layers; both must be for the same U-Net"
            )
    return layers
