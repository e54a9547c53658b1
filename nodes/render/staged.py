"""From the inputs of Staged Video to the render: what is wrong is told first, then a job is opened and made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ...model_patches.comfy_host.video.shared import latent_size
from ...model_patches.comfy_host.video.staged import StagedVideo, as_image, fitted
from ...model_patches.dreamvideo.image import FITS
from ...model_patches.dreamvideo.stages import REANCHOR, UNDER_NOISE, StagePlan, parse_stages
from ...rendering.formats import check_format
from ...rendering.graph import input_hashes
from ...rendering.job import LATENTS, Job, open_job
from ...rendering.loop import Output, Work, parse_takes
from .base import KEEP, NodeWatch, as_files, job_root, metadata, rate_of, render_job

FOLDER = "staged_video"  # of ComfyUI's output folder
WHAT = "staged video"


@dataclass(frozen=True, kw_only=True)
class StagedRequest:
    """The inputs of the node, under their names."""

    model: Any
    clip: Any
    vae: Any
    retention_branch: Any
    prompts: str
    seed: int
    frames: int
    steps: int
    text_scale: float
    image_scale: float
    name: str = "video"
    width: int = 256
    height: int = 256
    drop_doubled: bool = False
    reanchor: str = REANCHOR[0]
    order: str = "text first"
    strength: float = 1.0
    sampler_name: str = "ddim"
    scheduler: str = "normal"
    fps: float = 8.0
    format: str = "h264-mp4"
    fit: str = FITS[0]
    re_render: str = ""
    keep: str = KEEP[0]
    enlarge: int = 1
    image_under_noise: str = UNDER_NOISE[0]
    negative: Any = None
    image: Any = None
    latent: Any = None

    def render(self, prompt: Any, pnginfo: Any, node: Any) -> tuple[Path, Any]:
        """The path of the video, and the picture of its last frame."""
        plan, size, takes = self.plan(), self.size(), parse_takes(self.re_render)
        kind = check_format(self.format, size[1] * self.enlarge, size[0] * self.enlarge)
        image, told = fitted(self.image, size, self.fit)
        video = self.video(plan, size, image)
        identity = self.identity(size) | video.identity() | {"graph": self.graph(prompt, node)}
        output = Output(kind, self.rate(), self.frames, metadata(prompt, pnginfo), unit="stage", doubled=plan.doubled)
        watch = NodeWatch(plan.count, self.steps, WHAT)
        with open_job(job_root(FOLDER), self.name, identity) as (job, remark):
            work = Work(video.sample, as_files(video.decode, self.enlarge), inputs_of(video, job, takes))
            remarks = [remark, told, f"{plan.count} stages, {plan.total} frames"]
            path = render_job(job, plan.count, work, output, watch=watch, keep=self.keep, remarks=remarks, takes=takes)
            return path, as_image(job.read_tensors(plan.count - 1, LATENTS)["latents"][-1:])

    def plan(self) -> StagePlan:
        return StagePlan(prompts=parse_stages(self.prompts), frames=self.frames, drop_doubled=self.drop_doubled)

    def rate(self) -> Fraction:
        return rate_of(self.fps)

    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.height, self.width) if self.latent is None else latent_size(self.latent, self.vae)

    def video(self, plan: StagePlan, size: tuple[int, int], image: Any) -> StagedVideo:
        return StagedVideo(
            self.model,
            self.clip,
            self.vae,
            self.retention_branch,
            plan,
            negative=self.negative,
            image=image,
            size=size,
            sampler=self.sampler_name,
            scheduler=self.scheduler,
            steps=self.steps,
            seed=self.seed,
            scales=(self.text_scale, self.image_scale, self.order),
            strength=self.strength,
            reanchor=self.reanchor,
            under_noise=self.image_under_noise,
        )

    def identity(self, size: tuple[int, int]) -> dict[str, Any]:
        """Settings that the frames depend on. How many stages there are is none, and neither are their texts: what of
        them differs is made anew from there on."""
        names = (
            "seed",
            "frames",
            "steps",
            "text_scale",
            "image_scale",
            "order",
            "drop_doubled",
            "reanchor",
            "strength",
        )
        given = {name: getattr(self, name) for name in (*names, "sampler_name", "scheduler", "format", "enlarge")}
        given |= {"image_under_noise": self.image_under_noise} if self.image_under_noise != UNDER_NOISE[0] else {}
        return given | {"width": size[1], "height": size[0], "fps": str(self.rate())}

    def graph(self, prompt: Any, node: Any) -> dict[str, str]:
        """The image counts by what it shows, not by what made it."""
        names = ("model", "clip", "vae", "retention_branch", "negative")
        return input_hashes(prompt, str(node), names) if prompt else {}


def inputs_of(video: StagedVideo, job: Job, takes: Mapping[int, int]) -> Any:
    """What the engine asks of a stage: text and take, for the stages behind another take begin with other images."""
    return lambda stage: json.dumps([video.inputs(stage), takes.get(stage, job.record(stage).take)])
