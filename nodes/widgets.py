"""Inputs that the nodes which render into a file have in common."""

from typing import Any

from comfy_api.latest import io

from ..model_patches.comfy_host.video.shared import SCHEDULERS
from ..rendering.formats import FORMATS


def seed(tooltip: str = "Seed of all noise. Another seed gives another video.", *, advanced: bool = False) -> Any:
    """Fixed until the user changes it: the seed is part of a job's identity, so queueing again resumes the job."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,
        advanced=advanced,
        tooltip=tooltip,
    )


def scheduler() -> Any:
    return io.Combo.Input(
        "scheduler",
        options=list(SCHEDULERS),
        default="normal",
        advanced=True,
        tooltip="How the noise levels of the steps are chosen.",
    )


def fps() -> Any:
    return io.Float.Input(
        "fps", default=8.0, min=0.1, max=240.0, step=0.1, advanced=True, tooltip="Frames per second of the video."
    )


def file_format() -> Any:
    return io.Combo.Input(
        "format",
        options=list(FORMATS),
        default="h264-mp4",
        advanced=True,
        tooltip="h264-mp4 plays everywhere. ffv1-mkv loses nothing. png and webp: ffv1-mkv, and a folder of pictures.",
    )


def enlarge() -> Any:
    return io.Int.Input(
        "enlarge",
        default=1,
        min=1,
        max=16,
        optional=True,  # appended after two of its nodes had landed
        advanced=True,
        tooltip="Each pixel becomes so many across and down in the file, for models of small pictures.",
    )
