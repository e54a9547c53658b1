"""The same metrics for the pocket's clips, by its own judges; they need no file and compare with no paper's figures.

Features and classes are those of the judges that come with the pack (`judge`, `video_judge`), which were trained on
rendered clips alone. Clips: 16 frames; other sizes than 64 x 64 are scaled to it.
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
from .video_metrics import CAPTION, GIVEN, REFERENCE, Film, Metric, distance, enough, fitted, given, score_of

SIZE = 64
OF_SCORE = ("motion", "colour", "shape")  # heads whose joint classes the score counts
LAYOUT: dict[str, Any] = {"size": SIZE, "range": "0..1", "channels": "RGB"}
Labels = Callable[[str], Mapping[str, int]]  # what a caption says: label of the judge -> class


def small(frames: Tensor) -> Tensor:
    """Bytes (f, 3, h, w) -> 0..1, (f, 3, 64, 64)."""
    return torch.stack([fitted(frame, SIZE, SIZE) for frame in frames])


class PocketFvd(Metric):
    """Frechet distance of the video judge's features. Lower is better."""

    title, needs, frames = "pocket FVD", frozenset({REFERENCE}), range(FRAMES, FRAMES + 1)

    def __init__(self, judge: VideoJudge, *, few: bool = False) -> None:
        self.judge, self.few = judge, few
        self.layout = LAYOUT | {"network": "video judge, 64 features"}

    @torch.no_grad()
    def rows(self, films: Sequence[Film]) -> Tensor:
        return self.judge.features(torch.stack([small(film.frames) for film in films]))

    def check(self, videos: int, references: int, /) -> None:
        enough(self.title, FEATURES, videos, references, self.few)

    def figure(self, rows: Tensor, reference: Tensor | None, draws: int, /) -> Interval:
        return distance(rows, reference, draws)


class PocketInceptionScore(Metric):
    """Inception Score over what moves and how: the video judge's motion, colour and shape. Higher is better.

    Its heads are taken as independent given the clip, so a class is a triple and its probability a product.
    """

    title, needs, frames = "pocket IS", frozenset(), range(FRAMES, FRAMES + 1)

    def __init__(self, judge: VideoJudge) -> None:
        self.judge = judge
        classes = " x ".join(f"{judge.classes[name]} {name}s" for name in OF_SCORE)
        self.layout = LAYOUT | {"network": "video judge", "classes": classes, "splits": 1}

    @torch.no_grad()
    def rows(self, films: Sequence[Film]) -> Tensor:
        found = self.judge(torch.stack([small(film.frames) for film in films]))
        motion, colour, shape = (found[name].softmax(1) for name in OF_SCORE)
        return torch.einsum("na,nb,nc->nabc", motion, colour, shape).flatten(1)

    def figure(self, rows: Tensor, _reference: Tensor | None, draws: int, /) -> Interval:
        return score_of(rows, 1, draws)


class PocketClipSim(Metric):
    """Mean probability of what the caption names (colour, shape, background), over labels and frames, 0 to 1.

    NaN for a caption that names nothing of the pocket's world; such videos are left out of the mean.
    """

    title, needs = "pocket CLIPSIM", frozenset({CAPTION})

    def __init__(self, judge: Judge, labels: Labels) -> None:
        self.judge, self.labels = judge, labels
        self.layout = LAYOUT | {"network": "judge", "labels": ", ".join(LABELS)}

    @torch.no_grad()
    def rows(self, films: Sequence[Film]) -> Tensor:
        return torch.stack([self._row(film) for film in films])

    def _row(self, film: Film) -> Tensor:
        seen, named = self.judge(small(film.frames)).logits, self.labels(film.caption)
        shares = [seen[label].softmax(1)[:, of].mean() for label, of in named.items()]
        return torch.stack(shares).mean() if shares else torch.tensor(torch.nan)


class PocketFirstFrameClip(Metric):
    """Cosine of the judge's features of first frame and given image. Higher is better."""

    title, needs = "pocket FFF-CLIP", frozenset({GIVEN})

    def __init__(self, judge: Judge) -> None:
        self.judge, self.layout = judge, LAYOUT | {"network": "judge, features under its heads"}

    @torch.no_grad()
    def rows(self, films: Sequence[Film]) -> Tensor:
        firsts = self.judge.features(torch.cat([small(film.frames[:1]) for film in films]))
        images = self.judge.features(torch.cat([small(given(film).unsqueeze(0)) for film in films]))
        return F.cosine_similarity(firsts, images)


class PocketFirstFrameSsim(Metric):
    """SSIM of first frame and given image at the pocket's size. Higher is better."""

    title, needs = "pocket FFF-SSIM", frozenset({GIVEN})

    def __init__(self) -> None:
        self.layout = LAYOUT | {"window": "Gaussian, 11 pixels, sigma 1.5"}

    def rows(self, films: Sequence[Film]) -> Tensor:
        firsts = torch.cat([small(film.frames[:1]) for film in films])
        return first_frame_ssim(firsts, torch.cat([small(given(film).unsqueeze(0)) for film in films]))
