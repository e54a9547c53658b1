"""python -m stillmotion.training eval VIDEOS --metrics ... --out FOLDER: the papers' metrics of a folder of videos.

One pass over the videos, a few at a time; of each only what a metric needs is kept, some hundred numbers. Then the
reference, for those metrics that need one. What is missing is told before the first video is read. The report is
evaluation.json and evaluation.md.
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
from .watching import VideoPass, opened, watched

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
    """What is asked for; the options of the verb by their names."""

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
    limit: int = 0  # videos of each folder; 0: all
    fvd_protocol: str = ""
    splits: int = SPLITS
    few: bool = False
    skip_damaged: bool = False
    batch: int = 4
    draws: int = DRAWS
    command: tuple[str, ...] = ("eval",)


def evaluate(request: Request) -> dict[str, Any]:
    """The report, which is also written. MetricError, before anything heavy, when something is missing."""
    names, optional = chosen(request.metrics)
    if request.out.exists() and not request.out.is_dir():
        raise MetricError(f"--out {request.out} is a file; give a folder for evaluation.json and evaluation.md")
    inputs = Inputs(request)
    names, without = inputs.usable(names, optional)
    metrics = built(request, names)
    references = inputs.references
    for metric in metrics.values():
        if request.frames not in metric.frames:
            raise MetricError(_frames_error(metric, request.frames))
        metric.check(len(inputs.videos), len(references) or pocket.RENDERED)
    video_pass = watch(inputs, request, metrics)
    compared = {name: metric for name, metric in metrics.items() if REFERENCE in metric.needs}
    real, rendered = VideoPass(), VideoPass()
    if compared and references:
        real = watch_reference(references, request, compared)
    elif compared:
        rendered = pocket.rendered(compared)
    against = real if references else rendered
    found = {}
    for name, metric in metrics.items():
        metric.check(len(video_pass.names), len(against.names) if name in compared else len(video_pass.names))
        log.info("%s: intervals", metric.title)
        found[name] = metric.compute(video_pass.of(name), against.of(name) if name in compared else None, request.draws)
        log.info("%s: %s", metric.title, found[name])
    told = _report(request, metrics, found, without, video_pass, against if compared else None)
    write(told, request.out)
    return told


def chosen(metrics: Sequence[str]) -> tuple[list[str], frozenset[str]]:
    """The names, and which of them may be left out: those that only the word `pocket` asked for."""
    names, optional = [name for name in metrics if name != "pocket"], []
    for name in names:
        if name not in NAMES:
            raise MetricError(f"--metrics {name}: there is none; known: {', '.join((*NAMES, 'pocket'))}")
    if "pocket" in metrics:
        optional = [name for name in pocket.NAMES if name not in names]
    if not names + optional:
        raise MetricError(f"--metrics is empty; give some of {', '.join((*NAMES, 'pocket'))}")
    return list(dict.fromkeys(names + optional)), frozenset(optional)


class Inputs:
    """The folders: videos, reference, captions, images; looked through, nothing decoded."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.videos = _limited(footage.listed(request.videos, "VIDEOS"), request.limit)
        listed = footage.listed(request.reference, "--reference") if request.reference else []
        self.references = _limited(listed, request.limit)
        self.captions = footage.captions(self.videos, request.captions)
        own = {video.name: video for video in listed}
        self.images: dict[str, Video] = {v.name: own[v.name] for v in self.videos if v.name in own}
        if request.images:
            found = footage.images(self.videos, request.images)
            self.images = {name: Video(name, path) for name, path in found.items()}

    def usable(self, names: Sequence[str], optional: frozenset[str]) -> tuple[list[str], dict[str, str]]:
        """The metrics whose needs are met; of the optional others, why not. MetricError for one that was asked for."""
        without: dict[str, str] = {}
        for name in names:
            reason = next(filter(None, (self._missing(name, need) for need in KINDS[name].needs)), "")
            if reason and name not in optional:
                raise MetricError(f"{name}: {reason}")
            if reason:
                log.info("%s is left out: %s", name, reason)
                without[name] = reason
        return [name for name in names if name not in without], without

    def _missing(self, name: str, need: str) -> str:
        if need == REFERENCE and not self.references and name not in pocket.NAMES:
            return "real videos to compare with are missing; give --reference FOLDER"
        there = {CAPTION: self.captions, IMAGE: self.images}.get(need)
        lacking = [] if there is None else [video.name for video in self.videos if video.name not in there]
        if not lacking:
            return ""
        first = f"{len(lacking)} of {len(self.videos)} videos have no {need}, the first is {lacking[0]}; give "
        return first + {
            CAPTION: '--captions FILE.jsonl with lines of {"video": NAME, "caption": TEXT}, or NAME.txt beside each',
            IMAGE: "--images FOLDER with NAME.png for each, or a --reference with a video of the same name",
        }.get(need, "")

    def sample(self, video: Video, given: bool) -> VideoSample:
        frames = footage.opening(video, self.request.frames, self.request.stride)
        image = self.images.get(video.name) if given else None
        first = None
        if image is not None:
            first = footage.picture(image.path) if image.path.is_file() and self.request.images else _first(image)
        return VideoSample(video.name, frames, self.captions.get(video.name, ""), first)


def built(request: Request, names: Sequence[str]) -> dict[str, Metric]:
    """The metrics with their networks. MetricError when a file is missing or of something else."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip = Clip(request.clip, device) if {"clipsim", "fff_clip"} & set(names) else None
    make: dict[str, Callable[[], Metric]] = {
        "fvd": lambda: video_metrics.Fvd(VideoFeatures(request.i3d, request.fvd_protocol, device), few=request.few),
        "is": lambda: video_metrics.VideoInceptionScore(VideoClasses(request.c3d, device), request.splits),
        "clipsim": lambda: video_metrics.ClipSim(_there(clip)),
        "fff_clip": lambda: video_metrics.FirstFrameClip(_there(clip)),
        "fff_ssim": video_metrics.FirstFrameSsim,
        **pocket.makers(few=request.few),
    }
    return {name: make[name]() for name in names}


def watch(inputs: Inputs, request: Request, metrics: dict[str, Metric]) -> VideoPass:
    given = any(IMAGE in metric.needs for metric in metrics.values())
    samples = opened(inputs.videos, lambda video: inputs.sample(video, given), request.skip_damaged, "videos")
    return watched(samples, metrics, request.batch)


def watch_reference(references: Sequence[Video], request: Request, metrics: dict[str, Metric]) -> VideoPass:
    def sample(video: Video) -> VideoSample:
        return VideoSample(video.name, footage.opening(video, request.frames, request.reference_stride))

    return watched(opened(references, sample, request.skip_damaged, "reference"), metrics, request.batch)


def _report(
    request: Request,
    metrics: dict[str, Metric],
    found: dict[str, Interval],
    without: dict[str, str],
    video_pass: VideoPass,
    against: VideoPass | None,
) -> dict[str, Any]:
    reference = None
    if against is not None and request.reference:
        reference = against.told(request.reference, request.frames, request.reference_stride)
    elif against is not None:
        reference = {"folder": "clips of the pocket's world, rendered", "count": len(against.names)}
    return {
        "format": FORMAT,
        "origin": report.origin(request.command),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "videos": video_pass.told(request.videos, request.frames, request.stride),
        "reference": reference,
        "images": str(request.images or ("first frames of the reference" if request.reference else "")),
        "metrics": {
            name: {
                **{"title": metrics[name].title, "value": i.value, "low": i.low, "high": i.high},
                **{"videos": len(video_pass.names), "draws": request.draws, "layout": metrics[name].layout},
            }
            for name, i in found.items()
        },
        "left_out": without,
    }


def write(told: dict[str, Any], out: Path) -> None:
    """evaluation.json and evaluation.md, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", out / "evaluation.json")
    write_text(markdown(told), out / "evaluation.md")
    log.info("%s", out / "evaluation.md")


def markdown(told: dict[str, Any]) -> str:
    lines = ["| metric | value | 95 % interval | clips | how |", "| --- | --- | --- | --- | --- |"]
    for entry in told["metrics"].values():
        value, low, high = (f"{entry[k]:.4g}" for k in ("value", "low", "high"))
        how = ", ".join(f"{k} {v}" for k, v in entry["layout"].items())
        lines.append(f"| {entry['title']} | {value} | {low} to {high} | {entry['videos']} | {how} |")
    lines += ["", f"- videos: {_line(told['videos'])}"]
    lines += [f"- reference: {_line(told['reference'])}"] if told["reference"] else []
    lines += [f"- {name} was left out: {why}" for name, why in told["left_out"].items()]
    lines += [f"- {_line(told['versions'])}", f"- {told['origin']}"]
    return "\n".join(["# Evaluation", "", *lines, ""])


def _line(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value not in ([], {}))


def _frames_error(metric: Metric, frames: int) -> str:
    first, last = metric.frames[0], metric.frames[-1]
    wanted = f"exactly {first}" if first == last else f"{first} or more"
    return f"{metric.title}: --frames {frames}, its network takes clips of {wanted} frames; give --frames {first}"


def _limited(found: list[Video], limit: int) -> list[Video]:
    return list(islice(found, limit)) if limit else found


def _first(video: Video) -> Tensor:
    return footage.opening(video, 1)[0]


def _there(clip: Clip | None) -> Clip:
    assert clip is not None
    return clip
