"""The shared part of the three render nodes: common inputs, the render itself, and the output on the node."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Protocol

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.cli_args import args
from comfy_api.v0_0_2 import InputImpl, io, ui

from ...model_patches.comfy_host.base.fingerprint import of_machine, of_sampler
from ...model_patches.comfy_host.video.shared import latent_size
from ...rendering.formats import check_format, repeat_pixels
from ...rendering.graph import input_hashes, source_of
from ...rendering.job import Job, clean, open_job
from ...rendering.loop import Output, Watch, Work, render
from ...rendering.preview import Progress
from .options import KEEP, OutputOptions

log = logging.getLogger(__name__)


class Engine(Protocol):
    """Samples and decodes, see `rendering.loop.Work`. identity(): settings that the frames depend on and only the
    engine knows."""

    sigmas: Any

    def sample(
        self, clip: int, take: int, before: Any, step: Callable[[float], None], /
    ) -> tuple[Any, dict[str, Any]]: ...
    def decode(self, latents: Any, /) -> Iterator[Any]: ...
    def identity(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """The job of a request: the engine makes `count` clips of `frames` frames.

    pictures(job): the IMAGE output of the node. inputs(job): see Work. takes: clips to render again. remarks: lines
    for the log. doubled: see Output.
    """

    engine: Engine
    count: int
    frames: int
    pictures: Callable[[Job], Any]
    inputs: Callable[[Job], Callable[[int], str]] = lambda _job: lambda _clip: ""
    takes: Mapping[int, int] = field(default_factory=dict)
    remarks: Iterable[str] = ()
    doubled: int = 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """The common inputs of the three nodes, under their names. A node adds its own inputs and `rendering`."""

    folder: ClassVar[str]  # in ComfyUI's output folder
    unit: ClassVar[str]  # the name of a clip in messages
    links: ClassVar[tuple[str, ...]] = ()  # inputs that count by the graph before them
    texts: ClassVar[str] = ""  # input whose text counts per clip, in the engine, not as a whole
    settings: ClassVar[tuple[str, ...]]  # inputs that count by their value

    vae: Any
    latent: Any
    seed: int = 0
    frames: int = 16
    steps: int = 50
    sampler_name: str = "ddim"
    scheduler: str = "normal"
    sampler: Any = None
    sigmas: Any = None
    output_options: OutputOptions = field(default_factory=OutputOptions)

    def rendering(self, size: tuple[int, int]) -> Rendering:
        """The job at a size of (height, width) pixels. ValueError for inputs that do not fit."""
        raise NotImplementedError

    def values(self) -> dict[str, Any]:
        """Further settings that the frames depend on."""
        return {}

    def render(self, prompt: Any, pnginfo: Any, node: Any) -> tuple[Path, Any]:
        """The path of the finished video, and pictures of it."""
        self.check_numbers()
        options, size, name = self.output_options, self.size(), self.folder.replace("_", " ")
        kind = check_format(options.format, size[1] * options.enlarge, size[0] * options.enlarge)
        rendering = self.rendering(size)
        identity = self.identity(size) | rendering.engine.identity() | {"graph": self.graph(prompt, str(node))}
        meta = metadata(prompt, pnginfo)
        output = Output(kind, self.rate(), rendering.frames, meta, unit=self.unit, doubled=rendering.doubled)
        watch = NodeWatch(rendering.count, len(rendering.engine.sigmas) - 1, name)
        with open_job(job_root(self.folder), options.name, identity, of_machine()) as (job, remark):
            decode = as_files(rendering.engine.decode, options.enlarge)
            work = Work(rendering.engine.sample, decode, rendering.inputs(job))
            path = render_job(
                job, rendering.count, work, output,
                watch=watch, keep=options.keep, remarks=[remark, *rendering.remarks], takes=rendering.takes,
            )  # fmt: skip
            return path, rendering.pictures(job)

    def check_numbers(self) -> None:
        """ValueError for a setting that is NaN or infinite, which ComfyUI's limits let through."""
        parts = (self, *(value for value in vars(self).values() if is_dataclass(value)))
        numbers = {name: value for part in parts for name, value in vars(part).items() if isinstance(value, float)}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise ValueError(f"{self.folder.replace('_', ' ')}: {name} is {value}; give a finite number")

    def rate(self) -> Fraction:
        return rate_of(self.output_options.fps)

    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return latent_size(self.latent, self.vae)

    def count(self, clips: int, frames: int) -> int:
        """Number of clips of `frames` frames: from the length in seconds if it is set, otherwise `clips`."""
        seconds = self.output_options.seconds
        return math.ceil(seconds * self.rate() / frames) if seconds else clips

    def identity(self, size: tuple[int, int]) -> dict[str, Any]:
        """Settings that the frames depend on. The length is not among them, so that a finished job can be extended."""
        names = [*self.settings, *(() if self.sigmas is not None else ("scheduler", "steps"))]
        sampler = {"sampler_name": self.sampler_name} if self.sampler is None else {"sampler": of_sampler(self.sampler)}
        options = {name: getattr(self.output_options, name) for name in ("format", "enlarge")}
        file = {"width": size[1], "height": size[0], "fps": str(self.rate()), **options}
        return {name: getattr(self, name) for name in names} | self.values() | sampler | file

    def linked(self) -> tuple[str, ...]:
        """Inputs that count by the graph before them; an input that replaces others changes the list."""
        return self.links

    def graph(self, prompt: Any, node: str) -> dict[str, str]:
        """Hashes of the graph before those inputs, and before the text encoder of `texts`."""
        if prompt is None:
            return {}
        source = source_of(prompt, node, self.texts)
        clip = input_hashes(prompt, source, ("clip",)) if source else {}
        return input_hashes(prompt, node, ("sampler", *self.linked())) | clip


def job_root(folder: str) -> Path:
    return Path(folder_paths.get_output_directory()) / folder


class NodeWatch(Watch):
    """Shows a render on its node: ComfyUI's progress bar, the strip as its preview, remarks in the log."""

    def __init__(self, clips: int, steps: int, name: str) -> None:
        self.steps, self.name = clips * steps, name
        self.bar = comfy.utils.ProgressBar(self.steps)

    def remark(self, text: str) -> None:
        log.info("%s: %s", self.name, text)

    def progress(self, progress: Progress) -> None:
        self.bar.update_absolute(round(progress.share * self.steps), self.steps)
        if progress.strip is not None:
            send_preview(progress.strip)

    def check(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()


def send_preview(picture: Any) -> None:
    """Send a PIL picture to the client whose prompt is running; web/render_strip.js shows it on the node.

    It is not sent as the preview of the progress bar, because the editor keeps that preview when the node is done and
    shows it in place of the video. This way also reaches clients that know no other previews.
    """
    from server import BinaryEventTypes, PromptServer  # of ComfyUI; importable only in a running server

    if server := getattr(PromptServer, "instance", None):
        preview = ("JPEG", picture, max(picture.size))
        server.send_sync(BinaryEventTypes.UNENCODED_PREVIEW_IMAGE, preview, server.client_id)


def rate_of(fps: float) -> Fraction:
    """Frames per second as in video files: 29.97 is 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def as_files(decode: Callable[[Any], Iterator[Any]], enlarge: int) -> Callable[[Any], Iterator[Any]]:
    """The function that decodes latents into the frames of the file."""
    return lambda latents: (repeat_pixels(frames.numpy(), enlarge) for frames in decode(latents))


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
    """Render a job of `count` clips and return the path of its video. remarks are logged first; keep: one of KEEP."""
    for line in filter(None, remarks):
        watch.remark(line)
        job.log(line)
    path = render(job, count, work, output, takes=takes, watch=watch)
    if keep != KEEP[0] and (freed := clean(job)):
        watch.remark(f"freed {freed / 1e6:.1f} MB of {job.folder.name}")
    return path


def node_output(path: Path, pictures: Any) -> io.NodeOutput:
    """The outputs of a render node (video, pictures, folder of the job) and what the editor shows.

    The editor plays MP4 on the node. No browser plays FFV1, so for a Matroska file it shows the last picture.
    """
    output = Path(folder_paths.get_output_directory())
    saved = ui.SavedResult(path.name, path.parent.relative_to(output).as_posix(), io.FolderType.output)
    if path.suffix == ".mp4":
        preview = ui.PreviewVideo([saved]).as_dict()
    else:
        preview = ui.PreviewImage(pictures[-1:]).as_dict() | {"video": [saved]}
    return io.NodeOutput(InputImpl.VideoFromFile(str(path)), pictures, str(path.parent), ui=preview)


class RenderNode(io.ComfyNode):
    """A node that renders a file. `request`: the class of its inputs, whose render() gives the file and pictures."""

    request: type[Request]

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        """NaN, which equals nothing: the node runs whenever it is queued, and renders only the missing clips."""
        return float("nan")

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        hidden = cls.hidden
        return node_output(*cls.request(**inputs).render(hidden.prompt, hidden.extra_pnginfo, hidden.unique_id))


def metadata(prompt: Any, pnginfo: Any) -> dict[str, Any]:
    """The metadata that ComfyUI writes into its own videos, unless disabled; without the field is_changed of nodes."""
    if args.disable_metadata:
        return {}
    nodes = {number: {k: v for k, v in node.items() if k != "is_changed"} for number, node in (prompt or {}).items()}
    return {**(pnginfo or {}), **({"prompt": nodes} if nodes else {})}
