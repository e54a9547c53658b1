"""The values of the option nodes. Every default is defined here once; the inputs of the nodes take it from here."""

from dataclasses import dataclass

from ...model_patches.artv.guidance import MASKS
from ...model_patches.comfy_host.video.autoregressive import FITS as ARTV_FITS
from ...model_patches.core.pictures import FITS
from ...model_patches.dreamvideo.guidance import TEXT_FIRST
from ...model_patches.dreamvideo.stages import REANCHOR, UNDER_NOISE
from ...model_patches.vidrd.reuse import Config as ReuseConfig

KEEP = ("everything", "what extends it")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """The file: name of the job, frames per second, length in seconds (0: not set), format, enlargement, and which
    files of the job are kept (one of KEEP)."""

    name: str = "video"
    fps: float = 8.0
    seconds: float = 0.0
    format: str = "h264-mp4"
    enlarge: int = 1
    keep: str = KEEP[0]


@dataclass(frozen=True, kw_only=True)
class ReuseOptions(ReuseConfig):
    """How much of the previous clip is used again, and whether the noise of the sampler's steps is reused."""

    reuse_step_noise: bool = False


@dataclass(frozen=True, kw_only=True)
class ArtvOptions:
    """Guidance scales of references and anchor, the timestep of their noise, masks (one of MASKS), and how pictures
    are fitted to the size of the video."""

    reference_weight: float = 0.25
    anchor_weight: float = 0.25
    t_test: int = 200
    masks: str = MASKS[0]
    fit: str = ARTV_FITS[0]


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """How stages follow each other, and how the image is used; the terms are those of `model_patches.dreamvideo`."""

    drop_doubled: bool = False
    reanchor: str = REANCHOR[0]
    order: str = TEXT_FIRST
    strength: float = 1.0
    fit: str = FITS[0]
    image_under_noise: str = UNDER_NOISE[0]
