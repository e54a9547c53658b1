"""The config of the training of VidRD's temporal-aware decoder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ...model_patches.core.config import GROUP_NORMS
from ...model_patches.vidrd.losses import PERCEPTUAL
from .common import BasePlan, DataTable


@dataclass(frozen=True, kw_only=True)
class DecoderDataTable(DataTable):
    """Clips in pixels, for the training of a decoder, without captions and cached latents."""

    frames: int = 8
    videos: str = ""  # a folder of videos; empty: drawn clips
    clips: int = 20000  # number of drawn clips
    size: int = 64  # width and height in pixels
    fps: float = 6.0  # frames per second, of videos


@dataclass(frozen=True, kw_only=True)
class DecoderModelTable:
    """Temp-Convs of the decoder. Statistics per frame are our choice, which makes decoding as a stream exact."""

    conv_layers: int = 3
    dropout: float = 0.1
    group_norm: str = "per_frame"  # or "per_clip", as in the published code


@dataclass(frozen=True, kw_only=True)
class DecoderLossTable:
    """Eq. 9. The weights are the paper's; the terms are RECONSTRUCTED. L_reg is constant and omitted."""

    rec: float = 1.0
    disc: float = 0.5
    flicker: float = 0.0  # weight of mean |d y - d x|, where d is the difference of adjacent frames. Ours
    perceptual: str = "gradient"  # or "lpips", which needs a file
    lpips: str = ""  # a TorchScript file that computes LPIPS of two images in -1..1
    disc_start: int = 0  # step at which the discriminator starts; latent diffusion uses 50,001
    disc_width: int = 64
    disc_layers: int = 3


@dataclass(frozen=True, kw_only=True)
class DecoderPlan(BasePlan):
    """A config of VidRD's temporal-aware decoder."""

    system: ClassVar[str] = "vidrd_decoder"
    data: DecoderDataTable = field(default_factory=DecoderDataTable)
    model: DecoderModelTable = field(default_factory=DecoderModelTable)
    loss: DecoderLossTable = field(default_factory=DecoderLossTable)

    def choices(self) -> dict[str, tuple[str, Sequence[str]]]:
        return super().choices() | {
            "model.group_norm": (self.model.group_norm, GROUP_NORMS),
            "loss.perceptual": (self.loss.perceptual, PERCEPTUAL),
        }

    def least(self) -> dict[str, tuple[float, float]]:
        return super().least() | {
            "model.conv_layers": (self.model.conv_layers, 1),
            "loss.rec": (self.loss.rec, 0),
            "loss.disc": (self.loss.disc, 0),
            "loss.disc_layers": (self.loss.disc_layers, 1),
            "data.clips": (self.data.clips, 1),
            "data.size": (self.data.size, 8),
        }
