"""The same metrics for the pocket's clips, with its judges; they need no files, and are not comparable with papers.

Features and classes are those of the bundled judges (`judge`, `video_judge`), which were trained only on rendered
clips. Clips have 16 frames; other sizes are scaled to 64 x 64.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..judges.judge import LABELS, Judge
from ..judges.video_judge import FEATURES, FRAMES, VideoJudge
from ..scores.statistics import Interval
from .first_frame import first_frame_ssim
from .video_metrics import (
    CAPTION,
    IMAGE,
    REFERENCE,
    Metric,
    VideoSample,
    check_counts,
    distance,
    resize_and_crop,
    score_of,
    source_image,
)

SIZE = 64
OF_SCORE = ("motion", "colour", "shape")  # heads whose joint classes are used for the score
LAYOUT: dict[str, Any] = {"size": SIZE, "range": "0..1", "channels": "RGB"}
Labels = Callable[[str], Mapping[str, int]]  # caption -> (label of the judge -> class)


def resize(frames: Tensor) -> Tensor:
    """Bytes (f, 3, h, w) -> 0..1, (f, 3, 64, 64)."""
    return torch.stack([resize_and_crop(frame, SIZE, SIZE) for frame in frames])


class PocketFvd(Metric):
    """Frechet distance of the video judge's features. Lower is better."""

    title, needs, frames = "pocket FVD", frozenset({REFERENCE}), range(FRAMES, FRAMES + 1)

    def __init__(self, judge: VideoJudge, *, few: bool = False) -> None:
        self.judge, self.few = judge, few
        self.layout = LAYOUT | {"network": "video judge, 64 features"}

    @torch.no_grad()
    def rows(self, videos: Sequence[VideoSample]) -> Tensor:
        return self.judge.features(torch.stack([resize(video.frames) for video in videos]))

    def check(self, videos: int, references: int, /) -> None:
        check_counts(self.title, FEATURES, videos, references, self.few)

    def compute(self, rows: Tensor, reference: Tensor | None, draws: int, /) -> Interval:
        return distance(rows, reference, draws)


class PocketInceptionScore(Metric):
    """Inception Score over motion, colour and shape of the video judge. Higher is better.

    The heads are treated as independent given the clip, so a class is a triple and its probability a product.
    """

    title, needs, frames = "pocket IS", frozenset(), range(FRAMES, FRAMES + 1)

    def __init__(self, judge: VideoJudge) -> None:
        self.judge = judge
        classes = " x ".join(f"{judge.classes[name]} {name}s" for name in OF_SCORE)
        self.layout = LAYOUT | {"network": "video judge", "classes": classes, "splits": 1}

    @torch.no_grad()
    def rows(self, videos: Sequence[VideoSample]) -> Tensor:
        outputs = self.judge(torch.stack([resize(video.frames) for video in videos]))
        motion, colour, shape = (outputs[name].softmax(1) for name in OF_SCORE)
        return torch.einsum("na,nb,nc->nabc", motion, colour, shape).flatten(1)

    def compute(self, rows: Tensor, _reference: Tensor | None, draws: int, /) -> Interval:
        return score_of(rows, 1, draws)


class PocketClipSim(Metric):
    """Mean probability of the caption's colour, shape and background over labels and frames, 0 to 1.

    NaN for a caption without such a label; these videos are excluded from the mean.
    """

    title, needs = "pocket CLIPSIM", frozenset({CAPTION})

    def __init__(self, judge: Judge, labels: Labels) -> None:
        self.judge, self.labels = judge, labels
        self.layout = LAYOUT | {"network": "judge", "labels": ", ".join(LABELS)}

    @torch.no_grad()
    def rows(self, videos: Sequence[VideoSample]) -> Tensor:
        return torch.stack([self._row(video) for video in videos])

    def _row(self, video: VideoSample) -> Tensor:
        logits, classes = self.judge(resize(video.frames)).logits, self.labels(video.caption)
        shares = [logits[label].softmax(1)[:, of].mean() for label, of in classes.items()]
        return torch.stack(shares).mean() if shares else torch.tensor(torch.nan)


class PocketFirstFrameClip(Metric):
    """Cosine similarity of the judge's features of the first frame and the source image. Higher is better."""

    title, needs = "pocket FFF-CLIP", frozenset({IMAGE})

    def __init__(self, judge: Judge) -> None:
        self.judge, self.layout = judge, LAYOUT | {"network": "judge, inputs of its heads"}

    @torch.no_grad()
    def rows(self, videos: Sequence[VideoSample]) -> Tensor:
        firsts = self.judge.features(torch.cat([resize(video.frames[:1]) for video in videos]))
        images = self.judge.features(torch.cat([resize(source_image(video).unsqueeze(0)) for video in videos]))
        return F.cosine_similarity(firsts, images)


class PocketFirstFrameSsim(Metric):
    """SSIM of the first frame and the source image at the pocket's size. Higher is better."""

    title, needs = "pocket FFF-SSIM", frozenset({IMAGE})

    def __init__(self) -> None:
        self.layout = LAYOUT | {"window": "Gaussian, 11 pixels, sigma 1.5"}

    def rows(self, videos: Sequence[VideoSample]) -> Tensor:
        firsts = torch.cat([resize(video.frames[:1]) for video in videos])
        return first_frame_ssim(firsts, torch.cat([resize(source_image(video).unsqueeze(0)) for video in videos]))
