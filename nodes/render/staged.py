"""The inputs of the Staged Video node, and the render that they describe."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...model_patches.comfy_host.video.staged import StagedVideo, as_image, fit_image
from ...model_patches.dreamvideo.guidance import DEFAULT_SCALE
from ...model_patches.dreamvideo.stages import StagePlan
from ...rendering.job import LATENTS, Job
from .base import Rendering, Request
from .options import StageOptions


@dataclass(frozen=True)
class StagePrompts:
    """One prompt per stage, and the CLIP that encodes them."""

    clip: Any
    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StagedRequest(Request):
    """The inputs of the node, under their names."""

    folder, unit = "staged_video", "stage"
    settings = ("seed", "frames", "text_scale", "image_scale")
    # the image counts by its content, not by the nodes that made it; prompts count by stage, see `StagedVideo.inputs`
    links = ("model", "vae", "retention_branch", "negative")
    texts = "prompts"

    model: Any
    retention_branch: Any
    prompts: StagePrompts
    frames: int = 8
    text_scale: float = DEFAULT_SCALE
    image_scale: float = DEFAULT_SCALE
    negative: Any = None
    image: Any = None
    stage_options: StageOptions = field(default_factory=StageOptions)
    render_again: Mapping[int, int] = field(default_factory=dict)

    def rendering(self, size: tuple[int, int]) -> Rendering:
        plan = self.plan()
        image, remark = fit_image(self.image, size, self.stage_options.fit)
        engine = self.engine(plan, size, image)

        def last_frame(job: Job) -> Any:
            return as_image(job.read_tensors(plan.count - 1, LATENTS)["latents"][-1:])

        return Rendering(
            engine=engine,
            count=plan.count,
            frames=self.frames,
            pictures=last_frame,
            inputs=lambda job: self.inputs(engine, job),
            takes=self.render_again,
            remarks=(remark, f"{plan.count} stages, {plan.total} frames"),
            doubled=plan.doubled,
        )

    def plan(self) -> StagePlan:
        if seconds := self.output_options.seconds:
            raise ValueError(
                f"staged video: seconds is {seconds:g} in Video Output Options, but the number of prompts "
                "determines the length; set seconds to 0"
            )
        drop = self.stage_options.drop_doubled
        return StagePlan(prompts=self.prompts.texts, frames=self.frames, drop_doubled=drop)

    def engine(self, plan: StagePlan, size: tuple[int, int], image: Any) -> StagedVideo:
        options = self.stage_options
        return StagedVideo(
            self.model,
            self.prompts.clip,
            self.vae,
            self.retention_branch,
            plan,
            negative=self.negative,
            image=image,
            size=size,
            sampler=self.sampler_name if self.sampler is None else self.sampler,
            scheduler=self.scheduler,
            steps=self.steps,
            sigmas=self.sigmas,
            seed=self.seed,
            scales=(self.text_scale, self.image_scale, options.order),
            strength=options.strength,
            reanchor=options.reanchor,
            under_noise=options.image_under_noise,
        )

    def inputs(self, engine: StagedVideo, job: Job) -> Callable[[int], str]:
        """Prompt and take of a stage: stages after another take begin with other images."""
        takes = self.render_again
        return lambda stage: json.dumps([engine.inputs(stage), takes.get(stage, job.record(stage).take)])

    def values(self) -> dict[str, Any]:
        """Without fit, whose effect is part of the image's content."""
        return {name: value for name, value in asdict(self.stage_options).items() if name != "fit"}
