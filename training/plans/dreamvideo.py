"""The config of DreamVideo's training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ...model_patches.core.config import GROUP_NORMS
from ...model_patches.dreamvideo.config import INJECT, RANGES, TEMPORAL
from ...model_patches.dreamvideo.guidance import DEFAULT_SCALE
from ...model_patches.vidrd.config import EMBEDDINGS
from .common import DSM, BasePlan, DataTable, EpsLossTable, LayersTable, SamplesTable


@dataclass(frozen=True, kw_only=True)
class DreamVideoDataTable(DataTable):
    """Clips and their first frames, which are used as images (DreamVideo, section 4.3)."""

    frames: int = 8
    drop_image: float = 0.1  # share of the samples with a white image; independent of empty texts


@dataclass(frozen=True, kw_only=True)
class DreamVideoModelTable(LayersTable):
    """The trained parts of DreamVideo: its branch, and optionally the temporal layers of the primary U-Net."""

    motion: bool = True  # also train the temporal layers, as in the paper; else those of `start` stay unchanged
    temporal: str = "frozen"  # temporal layers in the branch: "frozen" copies of the initial ones, or "none"
    inject: str = "skips"  # or "up_blocks" (`dreamvideo.config.RetentionConfig`)
    image_range: str = "unit"  # or "signed"
    start: str = ""  # a VidRD file (as in the paper), a DreamVideo file, or a motion file, whose layers stay frozen
    controlnet: str = ""  # a ControlNet of the base to initialise the branch with; empty: the U-Net's own blocks


@dataclass(frozen=True, kw_only=True)
class DreamVideoSamplesTable(SamplesTable):
    """Previews during training: images and the clips made from them. `guidance` is s_t of Eq. 5."""

    clips: int = 3  # first clips of the data: a row each, from first frame and caption; `prompts` have no image
    guidance: float = DEFAULT_SCALE
    image: float = DEFAULT_SCALE  # s_i


@dataclass(frozen=True, kw_only=True)
class DreamVideoPlan(BasePlan):
    """A config of DreamVideo."""

    system: ClassVar[str] = "dreamvideo"
    data: DreamVideoDataTable = field(default_factory=DreamVideoDataTable)
    model: DreamVideoModelTable = field(default_factory=DreamVideoModelTable)
    loss: EpsLossTable = field(default_factory=EpsLossTable)
    samples: DreamVideoSamplesTable = field(default_factory=DreamVideoSamplesTable)

    def choices(self) -> dict[str, tuple[str, Sequence[str]]]:
        return super().choices() | {
            "model.temporal": (self.model.temporal, TEMPORAL),
            "model.inject": (self.model.inject, INJECT),
            "model.image_range": (self.model.image_range, RANGES),
            "model.group_norm": (self.model.group_norm, GROUP_NORMS),
            "model.embedding": (self.model.embedding, EMBEDDINGS),
            "loss.dsm": (self.loss.dsm, DSM),
        }

    def least(self) -> dict[str, tuple[float, float]]:
        return super().least() | {
            "data.drop_image": (self.data.drop_image, 0),
            "model.conv_layers": (self.model.conv_layers, 1),
            "samples.clips": (self.samples.clips, 0),
        }

    def most(self) -> dict[str, tuple[float, float]]:
        return super().most() | {"data.drop_image": (self.data.drop_image, 1)}
