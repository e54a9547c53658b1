"""The config of ART-V's training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ...model_patches.artv.config import ANCHORS, LEVELS, STATIC_REFERENCES, STATICS
from ...model_patches.artv.noise import LEVEL, MAX_LEVEL
from ...model_patches.core.levels import BETA_END, BETA_START, TIMESTEPS
from .common import DSM, BasePlan, DataTable, EpsLossTable, SamplesTable


@dataclass(frozen=True, kw_only=True)
class ArtvDataTable(DataTable):
    """Clips whose single frames are samples, each with its two previous frames and an anchor (ART-V, section 3)."""

    frames: int = 16  # frames of a clip
    drop_references: float = 0.1  # share of the samples without references; the three drops are independent
    drop_anchor: float = 0.1
    anchor_window: int = 10  # the anchor is one of this many frames before the sample's frame
    max_level: int = MAX_LEVEL  # references and anchor are noised to a level from 0 to this one


@dataclass(frozen=True, kw_only=True)
class ArtvModelTable:
    """The trained parts of ART-V, their sizes and the choices that the paper leaves open (`artv.config.ArtvConfig`)."""

    # the noise schedule of the base, which an ART-V file does not change
    beta_schedule: ClassVar[str] = "scaled_linear"
    beta_start: ClassVar[float] = BETA_START
    beta_end: ClassVar[float] = BETA_END

    unet: bool = True  # also train the image U-Net, as in the paper; it is written to a second file
    heads: tuple[int, ...] = ()  # of the anchor blocks; empty: those of the U-Net
    mask_channels: tuple[int, ...] = ()  # empty: a fifth of the U-Net's channels, as in the paper (64 for 320)
    mask_heads: tuple[int, ...] = ()  # empty: 32 channels per head
    adapter_blocks: int = 2
    anchor: str = "latent"
    anchor_patch: int = 4
    anchor_positions: bool = True
    anchor_ff: int = 4
    level_embedding: str = "added"
    static: str = "consistent"
    static_reference: str = "clean"
    start: str = ""  # an ART-V file to start from


@dataclass(frozen=True, kw_only=True)
class ArtvSamplesTable(SamplesTable):
    """Previews during training: videos from the prompt alone. `guidance` is 1 + the weight of the text in Eq. 8."""

    reference: float = 0.25  # weights of Eq. 8
    anchor: float = 0.25
    level: int = LEVEL  # of the noise on references and anchor


@dataclass(frozen=True, kw_only=True)
class ArtvPlan(BasePlan):
    """A config of ART-V."""

    system: ClassVar[str] = "artv"
    data: ArtvDataTable = field(default_factory=ArtvDataTable)
    model: ArtvModelTable = field(default_factory=ArtvModelTable)
    loss: EpsLossTable = field(default_factory=EpsLossTable)
    samples: ArtvSamplesTable = field(default_factory=ArtvSamplesTable)

    def choices(self) -> dict[str, tuple[str, Sequence[str]]]:
        anchors = [name for name in ANCHORS if name != "clip"]  # a cache of latents does not hold CLIP's tokens
        return super().choices() | {
            "model.anchor": (self.model.anchor, anchors),
            "model.level_embedding": (self.model.level_embedding, LEVELS),
            "model.static": (self.model.static, STATICS),
            "model.static_reference": (self.model.static_reference, STATIC_REFERENCES),
            "loss.dsm": (self.loss.dsm, DSM),
        }

    def least(self) -> dict[str, tuple[float, float]]:
        return super().least() | {
            "data.drop_references": (self.data.drop_references, 0),
            "data.drop_anchor": (self.data.drop_anchor, 0),
            "data.anchor_window": (self.data.anchor_window, 1),
            "data.max_level": (self.data.max_level, 0),
            "samples.level": (self.samples.level, 0),
        }

    def most(self) -> dict[str, tuple[float, float]]:
        return super().most() | {
            "data.drop_references": (self.data.drop_references, 1),
            "data.drop_anchor": (self.data.drop_anchor, 1),
            "data.max_level": (self.data.max_level, TIMESTEPS - 1),
            "samples.level": (self.samples.level, TIMESTEPS - 1),
        }
