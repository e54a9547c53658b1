"""From the inputs of Long Video to the render: what can be wrong is told first, then a job is opened and made."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui

from ...rendering.formats import enlarged
from ...rendering.job import Job, clean
from ...rendering.loop import Output, Watch, Work, render
from ...rendering.preview import Progress

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

    def remark(self, text: str) -> None:
        log.info("%s: %s", self.what, text)

    def progress(self, progress: Progress) -> None:
        self.bar.update_absolute(round(progress.share * self.steps), self.steps)
        if progress.strip is not None:
            send_preview(progress.strip)

    def check(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()


def send_preview(picture: Any) -> None:
    """Send a PIL picture to the client whose prompt runs; web/render_strip.js shows it on the node.

    Not as the preview of the progress bar: the editor would keep that one when the node is done, and take it for the
    video, so that neither could be seen. It also reaches clients that know no other previews.
    """
    from server import BinaryEventTypes, PromptServer  # ComfyUI's own, which needs a running server

    if server := getattr(PromptServer, "instance", None):
        preview = ("JPEG", picture, max(picture.size))
        server.send_sync(BinaryEventTypes.UNENCODED_PREVIEW_IMAGE, preview, server.client_id)


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
    """What a node that renders a file returns: the video, pictures, the job's folder; and what the editor shows.

    The editor plays MP4 on the node. No browser plays FFV1, so for a Matroska file it shows the last of the pictures.
    """
    output = Path(folder_paths.get_output_directory())
    saved = ui.SavedResult(path.name, path.parent.relative_to(output).as_posix(), io.FolderType.output)
    if path.suffix == ".mp4":
        preview = ui.PreviewVideo([saved]).as_dict()
    else:
        preview = ui.PreviewImage(pictures[-1:]).as_dict() | {"video": [saved]}
    return io.NodeOutput(InputImpl.VideoFromFile(str(path)), pictures, str(path.parent), ui=preview)


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
