"""python -m stillmotion.training eval VIDEOS --metrics ... --out FOLDER: the papers' metrics of a folder of videos.

The videos are processed in one pass, a few at a time; for each, only the features that a metric needs are stored, a few
hundred numbers. Then the reference is processed, for the metrics that need one. Missing inputs are reported before the
first video is read. The report is written to evaluation.json and evaluation.md.
"""

import json
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...evaluation.metrics import video_metrics
from ...evaluation.metrics.video_metrics import CAPTION, DRAWS, IMAGE, REFERENCE, Metric, VideoSample
from ...evaluation.networks.c3d import VideoClasses
from ...evaluation.networks.clip_similarity import Clip
from ...evaluation.networks.i3d import VideoFeatures
from ...evaluation.networks.inception import SPLITS
from ...evaluation.networks.loading import MetricError
from ...evaluation.scores import report
from ...evaluation.scores.statistics import Interval
from ...model_patches.files import write_text
from ..data import footage
from ..data.footage import Video
from . import pocket
from .watching import VideoPass, compute_rows, read_videos

log = logging.getLogger(__name__)
FORMAT = "stillmotion/evaluation/1"
KINDS: dict[str, type[Metric]] = {
    "fvd": video_metrics.Fvd,
    "is": video_metrics.VideoInceptionScore,
    "clipsim": video_metrics.ClipSim,
    "fff_clip": video_metrics.FirstFrameClip,
    "fff_ssim": video_metrics.FirstFrameSsim,
    **pocket.KINDS,
}
NAMES = tuple(KINDS)
PACKAGES = ("torch", "transformers", "av")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the verb, by their names."""

    videos: Path
    out: Path
    metrics: tuple[str, ...]
    reference: Path | None = None
    images: Path | None = None
    captions: Path | None = None
    i3d: Path | None = None
    c3d: Path | None = None
    clip: Path | None = None
    frames: int = 16
    stride: int = 1
    reference_stride: int = 1
    limit: int = 0  # number of videos of each folder; 0: all
    fvd_protocol: str = ""
    splits: int = SPLITS
    few: bool = False
    skip_damaged: bool = False
    batch: int = 4
    draws: int = DRAWS
    command: tuple[str, ...] = ("eval",)


def evaluate(request: Request) -> dict[str, Any]:
    """Compute the metrics, and write and return the report.

    Raises MetricError when an input is missing, before anything expensive is computed.
    """
    names, optional = select_metrics(request.metrics)
    if request.out.exists() and not request.out.is_dir():
        raise MetricError(f"--out {request.out} is a file; give a folder for evaluation.json and evaluation.md")
    inputs = Inputs(request)
    names, skipped = inputs.usable(names, optional)
    metrics = build_metrics(request, names)
    references = inputs.references
    for metric in metrics.values():
        if request.frames not in metric.frames:
            raise MetricError(_frames_error(metric, request.frames))
        metric.check(len(inputs.videos), len(references) or pocket.RENDERED)
    video_pass = watch(inputs, request, metrics)
    comparing = {name: metric for name, metric in metrics.items() if REFERENCE in metric.needs}
    reference = VideoPass()
    if comparing:
        reference = watch_reference(references, request, comparing) if references else pocket.rendered(comparing)
    values = {}
    for name, metric in metrics.items():
        metric.check(len(video_pass.names), len(reference.names) if name in comparing else len(video_pass.names))
        log.info("%s: computing the interval", metric.title)
        rows = reference.of(name) if name in comparing else None
        values[name] = metric.compute(video_pass.of(name), rows, request.draws)
        log.info("%s: %s", metric.title, values[name])
    data = _report(request, metrics, values, skipped, video_pass, reference if comparing else None)
    write(data, request.out)
    return data


def select_metrics(metrics: Sequence[str]) -> tuple[list[str], frozenset[str]]:
    """The names of the metrics, and those that are optional because they are only included in `pocket`."""
    names, optional = [name for name in metrics if name != "pocket"], []
    for name in names:
        if name not in NAMES:
            raise MetricError(f"--metrics {name}: there is no such metric; use {', '.join((*NAMES, 'pocket'))}")
    if "pocket" in metrics:
        optional = [name for name in pocket.NAMES if name not in names]
    if not names + optional:
        raise MetricError(f"--metrics is empty; give some of {', '.join((*NAMES, 'pocket'))}")
    return list(dict.fromkeys(names + optional)), frozenset(optional)


class Inputs:
    """The inputs of an evaluation: lists of videos, references, captions and images. Nothing is decoded yet."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.videos = _limited(footage.list_videos(request.videos, "VIDEOS"), request.limit)
        references = footage.list_videos(request.reference, "--reference") if request.reference else []
        self.references = _limited(references, request.limit)
        self.captions = footage.captions(self.videos, request.captions)
        by_name = {video.name: video for video in references}
        self.images: dict[str, Video] = {v.name: by_name[v.name] for v in self.videos if v.name in by_name}
        if request.images:
            paths = footage.images(self.videos, request.images)
            self.images = {name: Video(name, path) for name, path in paths.items()}

    def usable(self, names: Sequence[str], optional: frozenset[str]) -> tuple[list[str], dict[str, str]]:
        """The metrics whose inputs exist, and name -> reason for optional metrics that are skipped.

        Raises MetricError when an input of a metric that is not optional is missing.
        """
        skipped: dict[str, str] = {}
        for name in names:
            reason = next(filter(None, (self._missing(name, need) for need in KINDS[name].needs)), "")
            if reason and name not in optional:
                raise MetricError(f"{name}: {reason}")
            if reason:
                log.info("%s is skipped: %s", name, reason)
                skipped[name] = reason
        return [name for name in names if name not in skipped], skipped

    def _missing(self, name: str, need: str) -> str:
        if need == REFERENCE and not self.references and name not in pocket.NAMES:
            return "real videos for comparison are missing; give --reference FOLDER"
        available = {CAPTION: self.captions, IMAGE: self.images}.get(need)
        missing = [] if available is None else [video.name for video in self.videos if video.name not in available]
        if not missing:
            return ""
        fault = f"{len(missing)} of {len(self.videos)} videos have no {need}, the first is {missing[0]}; give "
        return fault + {
            CAPTION: '--captions FILE.jsonl with lines of {"video": NAME, "caption": TEXT}, or NAME.txt beside each',
            IMAGE: "--images FOLDER with NAME.png for each, or a --reference with a video of the same name",
        }.get(need, "")

    def sample(self, video: Video, with_image: bool) -> VideoSample:
        frames = footage.first_frames(video, self.request.frames, self.request.stride)
        image = self.images.get(video.name) if with_image else None
        first = None
        if image is not None:
            first = footage.picture(image.path) if image.path.is_file() and self.request.images else _first(image)
        return VideoSample(video.name, frames, self.captions.get(video.name, ""), first)


def build_metrics(request: Request, names: Sequence[str]) -> dict[str, Metric]:
    """The metrics with their networks. Raises MetricError when a file is missing or has another content."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip = Clip(request.clip, device) if {"clipsim", "fff_clip"} & set(names) else None
    make: dict[str, Callable[[], Metric]] = {
        "fvd": lambda: video_metrics.Fvd(VideoFeatures(request.i3d, request.fvd_protocol, device), few=request.few),
        "is": lambda: video_metrics.VideoInceptionScore(VideoClasses(request.c3d, device), request.splits),
        "clipsim": lambda: video_metrics.ClipSim(_require(clip)),
        "fff_clip": lambda: video_metrics.FirstFrameClip(_require(clip)),
        "fff_ssim": video_metrics.FirstFrameSsim,
        **pocket.makers(few=request.few),
    }
    return {name: make[name]() for name in names}


def watch(inputs: Inputs, request: Request, metrics: dict[str, Metric]) -> VideoPass:
    with_image = any(IMAGE in metric.needs for metric in metrics.values())
    samples = read_videos(inputs.videos, lambda video: inputs.sample(video, with_image), request.skip_damaged, "videos")
    return compute_rows(samples, metrics, request.batch)


def watch_reference(references: Sequence[Video], request: Request, metrics: dict[str, Metric]) -> VideoPass:
    def sample(video: Video) -> VideoSample:
        return VideoSample(video.name, footage.first_frames(video, request.frames, request.reference_stride))

    return compute_rows(read_videos(references, sample, request.skip_damaged, "reference"), metrics, request.batch)


def _report(
    request: Request,
    metrics: dict[str, Metric],
    values: dict[str, Interval],
    skipped: dict[str, str],
    video_pass: VideoPass,
    reference_pass: VideoPass | None,
) -> dict[str, Any]:
    reference = None
    if reference_pass is not None and request.reference:
        reference = reference_pass.summary(request.reference, request.frames, request.reference_stride)
    elif reference_pass is not None:
        reference = {"folder": "rendered clips of the pocket's world", "count": len(reference_pass.names)}
    return {
        "format": FORMAT,
        "origin": report.origin(request.command),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "videos": video_pass.summary(request.videos, request.frames, request.stride),
        "reference": reference,
        "images": str(request.images or ("first frames of the reference" if request.reference else "")),
        "metrics": {
            name: {
                **{"title": metrics[name].title, "value": i.value, "low": i.low, "high": i.high},
                **{"videos": len(video_pass.names), "draws": request.draws, "layout": metrics[name].layout},
            }
            for name, i in values.items()
        },
        "skipped": skipped,
    }


def write(data: dict[str, Any], out: Path) -> None:
    """Write evaluation.json and evaluation.md; an interrupted write leaves no partial file behind."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", out / "evaluation.json")
    write_text(markdown(data), out / "evaluation.md")
    log.info("wrote %s", out / "evaluation.md")


def markdown(data: dict[str, Any]) -> str:
    lines = ["| metric | value | 95 % interval | clips | settings |", "| --- | --- | --- | --- | --- |"]
    for entry in data["metrics"].values():
        value, low, high = (f"{entry[k]:.4g}" for k in ("value", "low", "high"))
        settings = ", ".join(f"{k} {v}" for k, v in entry["layout"].items())
        lines.append(f"| {entry['title']} | {value} | {low} to {high} | {entry['videos']} | {settings} |")
    lines += ["", f"- videos: {_line(data['videos'])}"]
    lines += [f"- reference: {_line(data['reference'])}"] if data["reference"] else []
    lines += [f"- {name} was skipped: {reason}" for name, reason in data["skipped"].items()]
    lines += [f"- {_line(data['versions'])}", f"- {data['origin']}"]
    return "\n".join(["# Evaluation", "", *lines, ""])


def _line(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value not in ([], {}))


def _frames_error(metric: Metric, frames: int) -> str:
    first, last = metric.frames[0], metric.frames[-1]
    length = f"exactly {first}" if first == last else f"{first} or more"
    return f"{metric.title}: --frames {frames}, its network needs clips of {length} frames; give --frames {first}"


def _limited(videos: list[Video], limit: int) -> list[Video]:
    return list(islice(videos, limit)) if limit else videos


def _first(video: Video) -> Tensor:
    return footage.first_frames(video, 1)[0]


def _require(clip: Clip | None) -> Clip:
    assert clip is not None
    return clip
