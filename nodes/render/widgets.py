"""Inputs that several nodes share. Their defaults come from the classes that receive them."""

from typing import Any

from comfy_api.v0_0_2 import io

from ...model_patches.comfy_host.video.shared import SAMPLERS, SCHEDULERS
from ...model_patches.vidrd.reuse import RULES
from .base import Request
from .options import ReuseOptions

OutputOptions = io.Custom("STILLMOTION_OUTPUT_OPTIONS")
RenderAgain = io.Custom("STILLMOTION_RENDER_AGAIN")


def seed(tooltip: str = "Seed of the noise. Another seed gives another video.", *, advanced: bool = False) -> Any:
    """Fixed until the user changes it: the seed is part of a job's identity, so that queueing again resumes the job."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,
        advanced=advanced,
        tooltip=tooltip,
    )


def frames(request: type[Request], tooltip: str, most: int = 4096) -> Any:
    return io.Int.Input("frames", default=request.frames, min=1, max=most, tooltip=tooltip)


def percents(part: str, *, last: str = "") -> list[Any]:
    """start_percent and end_percent of a part of a model. last: a further sentence on the end."""
    limits: dict[str, Any] = {"min": 0.0, "max": 1.0, "step": 0.001}
    start = f"Where in the sampling the {part} starts, as a fraction: 0 is the first step."
    end = f"Where in the sampling the {part} ends, as a fraction: 1 is the last step."
    return [
        io.Float.Input("start_percent", default=0.0, tooltip=start, **limits),
        io.Float.Input("end_percent", default=1.0, tooltip=f"{end} {last}".strip(), **limits),
    ]


def sampling(request: type[Request], *, steps: str, sampler: str) -> list[Any]:
    """steps, sampler_name and scheduler, as in the KSampler node. The tooltips give the paper's values."""
    return [
        io.Int.Input("steps", default=request.steps, min=1, max=10000, tooltip=f"Number of sampling steps; {steps}."),
        io.Combo.Input("sampler_name", options=list(SAMPLERS), default=request.sampler_name, tooltip=sampler),
        io.Combo.Input(
            "scheduler",
            options=list(SCHEDULERS),
            default=request.scheduler,
            tooltip="The schedule of noise levels over the steps.",
        ),
    ]


def latent() -> Any:
    return io.Latent.Input(
        "latent",
        tooltip="Sets width and height of the video, for example from Empty Latent Image. Its content and batch size "
        "are not used.",
    )


def reuse() -> list[Any]:
    """How much of the previous clip is used again."""
    return [
        io.Int.Input(
            "overlap",
            default=ReuseOptions.overlap,
            min=0,
            max=4096,
            tooltip="M: number of frames at the beginning of a clip that continue the previous clip. At most half a "
            "clip leaves room for new content.",
        ),
        io.Float.Input(
            "recycle",
            default=ReuseOptions.recycle,
            min=0.0,
            max=1000.0,
            step=0.1,
            tooltip="alpha: how much of the noise of the other frames comes from the previous clip, without unit. 0: "
            "none, 4: 97 %.",
        ),
        io.Float.Input(
            "staged_guidance",
            default=ReuseOptions.staged_guidance,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="beta: fraction of the steps in which the first frame follows the latents of the previous clip; "
            "later frames follow for fewer steps. 1 repeats the previous clip in reverse.",
        ),
        io.Combo.Input(
            "rule",
            options=list(RULES),
            default=ReuseOptions.rule,
            advanced=True,
            tooltip="How the guided steps are counted. code: as in the authors' code. paper: as in Eq. 8, one step "
            "more.",
        ),
        io.Boolean.Input(
            "reuse_step_noise",
            default=ReuseOptions.reuse_step_noise,
            advanced=True,
            tooltip="For ancestral and SDE samplers: also reuse the noise that they add at each step. It is kept in "
            "memory, one latent of a clip per step.",
        ),
    ]
