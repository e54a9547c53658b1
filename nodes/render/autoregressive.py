"""From the inputs of Autoregressive Video to the render: what is wrong is told first, then a job is opened and made."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ...model_patches.artv.guidance import MASKS, Weights
from ...model_patches.comfy_host.video.autoregressive import FITS, Roll, Start, started
from ...rendering import reader
from ...rendering.formats import check_format
from ...rendering.graph import input_hashes
from ...rendering.job import LATENTS, open_job
from ...rendering.loop import Output, Work
from .base import KEEP, NodeWatch, as_files, job_root, metadata, rate_of, render_job

FOLDER = "autoregressive_video"  # of ComfyUI's output folder
WHAT = "autoregressive video"


@dataclass(frozen=True, kw_only=True)
class RollRequest:
    """The inputs of the node, under their names."""

    model: Any
    artv: Any
    vae: Any
    name: str
    seed: int
    frames: int
    steps: int
    width: int
    height: int
    text_weight: float = 6.5
    reference_weight: float = 0.25
    anchor_weight: float = 0.25
    t_test: int = 200
    sampler_name: str = "dpmpp_2s_ancestral"
    scheduler: str = "normal"
    fps: float = 8.0
    format: str = "h264-mp4"
    fit: str = FITS[0]
    keep: str = KEEP[0]
    enlarge: int = 1
    masks: str = MASKS[0]
    positive: Any = None
    negative: Any = None
    story: Any = None
    image: Any = None
    video: Any = None
    anchor: Any = None

    def render(self, prompt: Any, pnginfo: Any, node: Any) -> tuple[Path, Any]:
        """The path of the video, and the picture of its last frame."""
        kind, count = check_format(self.format, self.width * self.enlarge, self.height * self.enlarge), self.count()
        start, told = started(
            self.vae, (self.height, self.width), self.fit, image=self.image, video=self.given(), anchor=self.anchor
        )
        roll = self.roll(start)
        roll.check(count)
        identity = self.identity() | roll.identity() | {"graph": self.graph(prompt, node)}
        output = Output(kind, self.rate(), 1, metadata(prompt, pnginfo), unit="frame")
        work = Work(roll.sample, as_files(roll.decode, self.enlarge), roll.inputs)
        watch = NodeWatch(count, self.steps, WHAT)
        with open_job(job_root(FOLDER), self.name, identity) as (job, remark):
            path = render_job(job, count, work, output, watch=watch, keep=self.keep, remarks=[remark, told])
            return path, roll.pictures(job.read_tensors(count - 1, LATENTS)["latents"])

    def count(self) -> int:
        """Frames of the video: at least those of the story."""
        return self.frames if self.story is None else max(self.frames, self.story.story.frames)

    def rate(self) -> Fraction:
        return rate_of(self.fps)

    def given(self) -> Iterator[Any] | None:
        """Frames of the video that is continued."""
        if self.video is None:
            return None
        start, duration = self.video.get_active_trim_window()
        return reader.frames(self.video.get_stream_source(), start=start, duration=duration)

    def roll(self, start: Start) -> Roll:
        return Roll(
            self.model,
            self.artv,
            self.vae,
            positive=self.positive,
            negative=self.negative,
            sampler=self.sampler_name,
            scheduler=self.scheduler,
            steps=self.steps,
            seed=self.seed,
            size=(self.height, self.width),
            weights=Weights(self.reference_weight, self.anchor_weight, self.text_weight),
            level=self.t_test,
            masks=self.masks,
            start=start,
            story=self.story,
        )

    def identity(self) -> dict[str, Any]:
        """Settings that the frames depend on. How many there are is none, and neither is the story: what of it differs
        is made anew from there on."""
        names = ("seed", "steps", "width", "height", "text_weight", "reference_weight", "anchor_weight", "t_test")
        names += ("sampler_name", "scheduler", "format", "enlarge", "masks")
        given = {name: getattr(self, name) for name in names}
        return given | {"fps": str(self.rate()), "told by": "positive" if self.story is None else "a story"}

    def graph(self, prompt: Any, node: Any) -> dict[str, str]:
        """Pictures count by what they show, not by what made them."""
        return input_hashes(prompt, str(node), ("model", "artv", "vae", "positive", "negative")) if prompt else {}
