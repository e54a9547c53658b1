"""One pass over a folder of videos that feeds every metric."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...evaluation.metrics.video_metrics import Metric, VideoSample
from ...evaluation.networks.loading import MetricError
from ..data import footage
from ..data.footage import Damaged, Video

log = logging.getLogger(__name__)
TOLD_EVERY = 10.0  # seconds


@dataclass
class VideoPass:
    """One pass over a folder: what was read, in its order."""

    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)

    def of(self, name: str) -> Tensor:
        return torch.cat(self.rows[name])

    def told(self, folder: Path, frames: int, stride: int) -> dict[str, Any]:
        facts = {"folder": str(folder), "count": len(self.names), "sha256": self.digest.hexdigest()}
        cut = {"frames": frames, "stride": stride, "sizes": dict(self.sizes)}
        return facts | cut | {"left_out": self.left_out}


def watched(samples: Iterable[tuple[Video, VideoSample | str]], metrics: dict[str, Metric], batch: int) -> VideoPass:
    """The rows of all metrics; `batch` videos are in memory at a time. An item that is a string is the reason why that
    video was skipped."""
    video_pass = VideoPass({name: [] for name in metrics})
    kept = _kept(samples, video_pass)
    while part := list(islice(kept, batch)):
        for name, metric in metrics.items():
            video_pass.rows[name].append(metric.rows(part).cpu())
    if not video_pass.names:
        raise MetricError(f"none of the videos can be used; the first: {video_pass.left_out[0]}")
    return video_pass


def _kept(samples: Iterable[tuple[Video, VideoSample | str]], video_pass: VideoPass) -> Iterator[VideoSample]:
    for video, sample in samples:
        if isinstance(sample, str):
            video_pass.left_out.append(sample)
            continue
        footage.add_to_digest(video_pass.digest, video)
        video_pass.names.append(sample.name)
        video_pass.sizes[f"{sample.frames.shape[-1]}x{sample.frames.shape[-2]}"] += 1
        yield sample


def opened(
    found: Sequence[Video], sample: Callable[[Video], VideoSample], skip: bool, what: str
) -> Iterator[tuple[Video, VideoSample | str]]:
    begun = told = time.monotonic()
    for i, video in enumerate(found, 1):
        try:
            yield video, sample(video)
        except Damaged as error:
            if not skip:
                raise MetricError(f"{error} (--skip-damaged leaves out all such videos)") from error
            log.warning("left out: %s", error)
            yield video, str(error)
        now = time.monotonic()
        if now - told > TOLD_EVERY or i == len(found):
            told, left = now, int((now - begun) / i * (len(found) - i))
            log.info("%s %d/%d  ETA %dh%02d:%02d", what, i, len(found), left // 3600, left // 60 % 60, left % 60)
