"""The inputs of the Long Video node, and the render that they describe."""

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ...model_patches.comfy_host.video.long import LongVideo, make_guider
from ...model_patches.comfy_host.video.shared import latent_size
from ...model_patches.vidrd.reuse import RULES, Rule
from ...model_patches.vidrd.reuse import Config as ReuseConfig
from ...rendering.formats import check_format
from ...rendering.graph import input_hashes
from ...rendering.job import LATENTS, open_job
from ...rendering.loop import Output, Work, parse_takes
from .base import KEEP, NodeWatch, as_files, job_root, metadata, rate_of, render_job


@dataclass(frozen=True, kw_only=True)
class LongRequest:
    """The inputs of the node, under their names."""

    model: Any
    vae: Any
    name: str
    seed: int
    clips: int
    frames: int
    steps: int
    cfg: float
    sampler_name: str = "ddim"
    scheduler: str = "normal"
    fps: float = 8.0
    width: int = 512
    height: int = 512
    format: str = "h264-mp4"
    seconds: float = 0.0
    overlap: int = 4
    recycle: float = 4.0
    guidance: float = 0.4
    rule: Rule = RULES[0]
    reuse_step_noise: bool = False
    re_render: str = ""
    keep: str = KEEP[0]
    enlarge: int = 1
    positive: Any = None
    negative: Any = None
    prompts: Any = None
    latent: Any = None
    guider: Any = None

    def render(self, prompt: Any, pnginfo: Any, node: Any) -> tuple[Path, Any]:
        """The path of the video, and the pictures of its first clip."""
        size, takes, count = self.size(), parse_takes(self.re_render), self.count()
        kind = check_format(self.format, size[1] * self.enlarge, size[0] * self.enlarge)
        long = self.video(size)
        long.check(count)
        identity = self.identity(size) | long.identity() | {"graph": self.graph(prompt, node)}
        output = Output(kind, self.rate(), self.frames, metadata(prompt, pnginfo))
        work, watch = Work(long.sample, as_files(long.decode, self.enlarge)), NodeWatch(count, self.steps)
        with open_job(job_root(), self.name, identity) as (job, remark):
            path = render_job(job, count, work, output, watch=watch, keep=self.keep, remarks=[remark], takes=takes)
            return path, long.pictures(job.read_tensors(0, LATENTS)["latents"])

    def count(self) -> int:
        """Clips of the video."""
        return math.ceil(self.seconds * self.rate() / self.frames) if self.seconds else self.clips

    def rate(self) -> Fraction:
        return rate_of(self.fps)

    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.height, self.width) if self.latent is None else latent_size(self.latent, self.vae)

    def video(self, size: tuple[int, int]) -> LongVideo:
        if self.guider is None and self.positive is None and self.prompts is None:
            raise ValueError("render: there is nothing to draw; connect positive, prompts or guider")
        return LongVideo(
            self.guider or make_guider(self.model, self.positive, self.negative, self.cfg),
            self.vae,
            sampler=self.sampler_name,
            scheduler=self.scheduler,
            steps=self.steps,
            seed=self.seed,
            frames=self.frames,
            size=size,
            config=ReuseConfig(overlap=self.overlap, recycle=self.recycle, guidance=self.guidance, rule=self.rule),
            step_noise=self.reuse_step_noise,
            prompts=self.prompts,
        )

    def identity(self, size: tuple[int, int]) -> dict[str, Any]:
        """Settings that the frames depend on. How many clips there are is none: a finished job can be extended."""
        names = ("seed", "frames", "steps", "sampler_name", "scheduler", "format", "overlap", "recycle", "guidance")
        given = {name: getattr(self, name) for name in (*names, "rule", "reuse_step_noise")}
        given |= {"enlarge": self.enlarge} if self.enlarge != 1 else {}
        return given | {"width": size[1], "height": size[0], "fps": str(self.rate())}

    def graph(self, prompt: Any, node: Any) -> dict[str, str]:
        if prompt is None:
            return {}
        own = ("guider",) if self.guider is not None else ("model", "positive", "negative")
        return input_hashes(prompt, str(node), ("vae", "prompts", *own))
