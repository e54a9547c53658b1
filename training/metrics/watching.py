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
from ..data.footage import UnreadableVideo, Video

log = logging.getLogger(__name__)
LOG_EVERY = 10.0  # seconds


@dataclass
class VideoPass:
    """The results of one pass over a folder, in the order of its videos. rows: metric -> its rows of the videos."""

    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)  # reasons
    digest: Any = field(default_factory=hashlib.sha256)

    def of(self, name: str) -> Tensor:
        return torch.cat(self.rows[name])

    def summary(self, folder: Path, frames: int, stride: int) -> dict[str, Any]:
        """The entry of this folder in the report."""
        content = {"folder": str(folder), "count": len(self.names), "sha256": self.digest.hexdigest()}
        settings = {"frames": frames, "stride": stride, "sizes": dict(self.sizes)}
        return content | settings | {"skipped": self.skipped}


def compute_rows(
    samples: Iterable[tuple[Video, VideoSample | str]], metrics: dict[str, Metric], batch: int
) -> VideoPass:
    """The rows of all metrics; `batch` videos are in memory at a time. An item that is a string is the reason why that
    video was skipped."""
    video_pass = VideoPass({name: [] for name in metrics})
    readable = _readable(samples, video_pass)
    while part := list(islice(readable, batch)):
        for name, metric in metrics.items():
            video_pass.rows[name].append(metric.rows(part).cpu())
    if not video_pass.names:
        raise MetricError(f"none of the videos can be used; the first: {video_pass.skipped[0]}")
    return video_pass


def _readable(samples: Iterable[tuple[Video, VideoSample | str]], video_pass: VideoPass) -> Iterator[VideoSample]:
    for video, sample in samples:
        if isinstance(sample, str):
            video_pass.skipped.append(sample)
            continue
        footage.add_to_digest(video_pass.digest, video)
        video_pass.names.append(sample.name)
        video_pass.sizes[f"{sample.frames.shape[-1]}x{sample.frames.shape[-2]}"] += 1
        yield sample


def read_videos(
    video_list: Sequence[Video], sample: Callable[[Video], VideoSample], skip: bool, label: str
) -> Iterator[tuple[Video, VideoSample | str]]:
    """Yield each video with its sample, or with the reason why it is skipped; logs the progress.

    Raises MetricError for an unreadable video unless `skip` is set.
    """
    start_time = last_log = time.monotonic()
    for i, video in enumerate(video_list, 1):
        try:
            yield video, sample(video)
        except UnreadableVideo as error:
            if not skip:
                raise MetricError(f"{error} (--skip-damaged skips all such videos)") from error
            log.warning("skipped: %s", error)
            yield video, str(error)
        now = time.monotonic()
        if now - last_log > LOG_EVERY or i == len(video_list):
            last_log, eta = now, int((now - start_time) / i * (len(video_list) - i))
            log.info("%s %d/%d  ETA %dh%02d:%02d", label, i, len(video_list), eta // 3600, eta // 60 % 60, eta % 60)
