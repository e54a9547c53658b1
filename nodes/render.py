"""From the inputs of Long Video to the render: what can be wrong is told first, then a job is opened and made."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.cli_args import LatentPreviewMethod, args
from comfy_api.latest import InputImpl, io, ui

from ..model_patches.comfy_host.long import LongVideo, latent_size, make_guider
from ..model_patches.comfy_host.reuse import RULES, ReuseConfig, Rule
from ..rendering.formats import check_format, enlarged
from ..rendering.graph import input_hashes
from ..rendering.job import LATENTS, Job, clean, open_job
from ..rendering.loop import Output, Watch, Work, parse_takes, render
from ..rendering.preview import Progress

FOLDER = "long_video"  # of ComfyUI's output folder
KEEP = ("everything", "what extends it")
log = logging.getLogger(__name__)


def job_root(folder: str = FOLDER) -> Path:
    return Path(folder_paths.get_output_directory()) / folder


class NodeWatch(Watch):
    """A render on a node: ComfyUI's progress bar, the strip as its preview, remarks in the log."""

    def __init__(self, clips: int, steps: int, what: str = "long video") -> None:
        self.steps, self.what = clips * steps, what
        self.bar = comfy.utils.ProgressBar(self.steps)
        self.shows = args.preview_method != LatentPreviewMethod.NoPreviews

    def remark(self, text: str) -> None:
        log.info("%s: %s", self.what, text)

    def progress(self, progress: Progress) -> None:
        strip = progress.strip if self.shows else None
        preview = None if strip is None else ("JPEG", strip, max(strip.size))
        self.bar.update_absolute(round(progress.share * self.steps), self.steps, preview)

    def check(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()


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


def rate_of(fps: float) -> Fraction:
    """Frames a second as a file has them: 29.97 is 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def as_files(decode: Callable[[Any], Iterator[Any]], enlarge: int) -> Callable[[Any], Iterator[Any]]:
    """What decodes latents into the frames of a file."""
    return lambda latents: (enlarged(frames.numpy(), enlarge) for frames in decode(latents))


def render_job(
    job: Job,
    count: int,
    work: Work,
    output: Output,
    *,
    watch: NodeWatch,
    keep: str,
    remarks: Iterable[str],
    takes: Mapping[int, int] | None = None,
) -> Path:
    """The path of a job's video of `count` clips. remarks are told first; keep: one of KEEP."""
    for line in filter(None, remarks):
        watch.remark(line)
        job.log(line)
    path = render(job, count, work, output, takes=takes, watch=watch)
    if keep != KEEP[0] and (freed := clean(job)):
        watch.remark(f"freed {freed / 1e6:.1f} MB of {job.folder.name}")
    return path


def shown(path: Path, pictures: Any) -> io.NodeOutput:
    """What a node that renders a file gives out: the video, pictures, the job's folder; and the file for the editor."""
    output = Path(folder_paths.get_output_directory())
    saved = ui.SavedResult(path.name, path.parent.relative_to(output).as_posix(), io.FolderType.output)
    # under "images" the editor would take the strip that it shows for a video, and show neither
    return io.NodeOutput(InputImpl.VideoFromFile(str(path)), pictures, str(path.parent), ui={"video": [saved]})


class RenderNode(io.ComfyNode):
    """A node that renders a file. `request`: its inputs, with render() -> the file and pictures of it."""

    request: Callable[..., Any]

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        """Equal to nothing: the node looks at its folder at every run, and makes only what is not whole there."""
        return float("nan")

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        hidden = cls.hidden
        return shown(*cls.request(**given).render(hidden.prompt, hidden.extra_pnginfo, hidden.unique_id))


def metadata(prompt: Any, pnginfo: Any) -> dict[str, Any]:
    """What ComfyUI writes into its own videos, unless it was told not to; without its notes on changed files."""
    if args.disable_metadata:
        return {}
    nodes = {number: {k: v for k, v in node.items() if k != "is_changed"} for number, node in (prompt or {}).items()}
    return {**(pnginfo or {}), **({"prompt": nodes} if nodes else {})}
