"""The config of the training of VidRD's U-Net."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ...model_patches.core.config import GROUP_NORMS
from ...model_patches.vidrd.config import EMBEDDINGS
from .common import DSM, BasePlan, EpsLossTable, LayersTable


@dataclass(frozen=True, kw_only=True)
class VidrdModelTable(LayersTable):
    """The trained parts of VidRD's U-Net: its temporal layers, and optionally the spatial transformers."""

    spatial: bool = True  # also fine-tune the blocks of the spatial transformers
    start: str = ""  # a VidRD file to start from


@dataclass(frozen=True, kw_only=True)
class VidrdPlan(BasePlan):
    """A config of VidRD's U-Net."""

    system: ClassVar[str] = "vidrd"
    model: VidrdModelTable = field(default_factory=VidrdModelTable)
    loss: EpsLossTable = field(default_factory=EpsLossTable)

    def choices(self) -> dict[str, tuple[str, Sequence[str]]]:
        return super().choices() | {
            "model.group_norm": (self.model.group_norm, GROUP_NORMS),
            "model.embedding": (self.model.embedding, EMBEDDINGS),
            "loss.dsm": (self.loss.dsm, DSM),
        }

    def least(self) -> dict[str, tuple[float, float]]:
        return super().least() | {"model.conv_layers": (self.model.conv_layers, 1)}
