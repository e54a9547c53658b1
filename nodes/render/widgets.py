"""Inputs that several nodes have in common. Defaults come from the classes that take the inputs."""

from typing import Any

from comfy_api.latest import io

from ...model_patches.comfy_host.video.shared import SAMPLERS, SCHEDULERS
from ...model_patches.vidrd.reuse import RULES
from .base import Request
from .options import ReuseOptions

OutputOptions = io.Custom("STILLMOTION_OUTPUT_OPTIONS")
RenderAgain = io.Custom("STILLMOTION_RENDER_AGAIN")


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


def frames(request: type[Request], tooltip: str, most: int = 4096) -> Any:
    return io.Int.Input("frames", default=request.frames, min=1, max=most, tooltip=tooltip)


def sampling(request: type[Request], *, steps: str, sampler: str) -> list[Any]:
    """steps, sampler_name and scheduler, as the KSampler node has them. Tooltips tell what the paper takes."""
    return [
        io.Int.Input("steps", default=request.steps, min=1, max=10000, tooltip=f"Steps of the sampler; {steps}"),
        io.Combo.Input("sampler_name", options=list(SAMPLERS), default=request.sampler_name, tooltip=sampler),
        io.Combo.Input(
            "scheduler",
            options=list(SCHEDULERS),
            default=request.scheduler,
            tooltip="How the noise levels of the steps are chosen.",
        ),
    ]


def latent() -> Any:
    return io.Latent.Input(
        "latent",
        tooltip="Its width and height are those of the video, such as Empty Latent Image has them. Its content and "
        "batch size do not count.",
    )


def reuse() -> list[Any]:
    """How much of the clip before is used again."""
    return [
        io.Int.Input(
            "overlap",
            default=ReuseOptions.overlap,
            min=0,
            max=4096,
            tooltip="M: frames at the beginning of a clip that continue the one before; at most half of a clip keeps "
            "new frames coming.",
        ),
        io.Float.Input(
            "recycle",
            default=ReuseOptions.recycle,
            min=0.0,
            max=1000.0,
            step=0.1,
            tooltip="alpha: how much of a clip's other noise is old, no unit. 0 is all new, 4 is 97 %.",
        ),
        io.Float.Input(
            "staged_guidance",
            default=ReuseOptions.staged_guidance,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="beta: fraction of the steps in which the first frame is put where the clip before had it; less "
            "for the frames after it. 1 repeats them in reverse.",
        ),
        io.Combo.Input(
            "rule",
            options=list(RULES),
            default=ReuseOptions.rule,
            advanced=True,
            tooltip="code: as the authors' code counts the guided steps. paper: as Eq. 8 is printed, one more.",
        ),
        io.Boolean.Input(
            "reuse_step_noise",
            default=ReuseOptions.reuse_step_noise,
            advanced=True,
            tooltip="Ancestral and SDE samplers: reuse the noise that they add at each step, too. Keeps it in memory: "
            "one latent of a clip for each step.",
        ),
    ]
