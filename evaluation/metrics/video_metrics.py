"""The metrics of video papers, each as rows per video and a figure of the rows, so that a bootstrap can draw again.

FVD: Unterthiner et al., arXiv 1812.01717. What a clip has to be for each network is in `layout` and goes into reports.
Shapes: a film is f frames of 3 x h x w bytes; films of one run may have other sizes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ...model_patches.core.pictures import fit
from ..networks import c3d, i3d
from ..networks.c3d import VideoClasses
from ..networks.clip_similarity import Clip, clip_similarity, first_frame_similarity
from ..networks.i3d import VideoFeatures
from ..networks.inception import SPLITS, inception_score
from ..networks.loading import MetricError
from ..scores.statistics import Interval, bootstrap, frechet_distance, moments
from .first_frame import first_frame_ssim

CAPTION, GIVEN, REFERENCE = "caption", "given image", "reference"
DRAWS = 200


@dataclass(frozen=True)
class Film:
    """One video, as far as it is looked at."""

    name: str
    frames: Tensor  # (f, 3, h, w) bytes
    caption: str = ""
    given: Tensor | None = None  # (3, h, w) bytes: the image that it was made from


class Metric(ABC):
    """A metric that is the mean of one figure per video, unless it says otherwise.

    needs: of CAPTION, GIVEN, REFERENCE. frames: how many a clip must have; an open end is a large number. layout: what
    a report says of the network and of the clips that it is given.
    """

    title: str
    needs: frozenset[str]
    frames = range(1, 10**6)
    layout: dict[str, Any]

    @abstractmethod
    def rows(self, films: Sequence[Film]) -> Tensor:
        """(n, ...) in the order of the films."""

    def check(self, videos: int, references: int, /) -> None:  # noqa: B027  any number does
        """MetricError when there are too few."""

    def figure(self, rows: Tensor, _reference: Tensor | None, draws: int, /) -> Interval:
        """The figure and its interval. NaN rows, of videos that the metric says nothing of, are left out."""
        values = rows.double()
        return bootstrap(lambda d: values[d].nanmean().item(), len(rows), draws=max(draws, 1000))


def units(frames: Tensor) -> Tensor:
    """Bytes to 0..1."""
    return frames.float() / 255


class Fvd(Metric):
    """Frechet distance of I3D's features of generated and real clips. Lower is better.

    few: allow sets with no more clips than features, whose covariance is singular: the figure is then biased upwards
    by much, and can be compared at one number of clips only.
    """

    title, needs, frames = "FVD", frozenset({REFERENCE}), range(i3d.SHORTEST, 10**6)

    def __init__(self, network: VideoFeatures, *, few: bool = False) -> None:
        self.network, self.few = network, few
        self.layout = {
            **{"network": "I3D, Kinetics-400, logits", "protocol": network.protocol, "size": i3d.SIZE},
            **{"range": "-1..1", "channels": "RGB", **asdict(network.file)},
        }

    def rows(self, films: Sequence[Film]) -> Tensor:
        return self.network([film.frames for film in films])

    def check(self, videos: int, references: int, /) -> None:
        enough(self.title, i3d.CLASSES, videos, references, self.few)

    def figure(self, rows: Tensor, reference: Tensor | None, draws: int, /) -> Interval:
        return distance(rows, reference, draws)


class VideoInceptionScore(Metric):
    """Inception Score by C3D. Higher is better."""

    title, needs, frames = "IS", frozenset(), range(c3d.FRAMES, c3d.FRAMES + 1)

    def __init__(self, network: VideoClasses, splits: int = SPLITS) -> None:
        self.network, self.splits = network, splits
        self.layout = {
            **{"network": "C3D, UCF-101, probabilities", "splits": splits, "size": c3d.SIZE},
            **{"range": "0..255 less the mean", "channels": "BGR", **asdict(network.file)},
        }
        if network.scripted:
            self.layout |= {"size": "the file's own", "range": "0..255, bytes", "channels": "RGB"}

    def rows(self, films: Sequence[Film]) -> Tensor:
        return self.network([film.frames for film in films])

    def check(self, videos: int, _references: int, /) -> None:
        if videos < 2 * self.splits:
            raise MetricError(
                f"IS: {videos} videos in {self.splits} splits; give {2 * self.splits} videos or more, or fewer "
                "--splits (papers: 10,000 videos, 10 splits)"
            )

    def figure(self, rows: Tensor, _reference: Tensor | None, draws: int, /) -> Interval:
        return score_of(rows, self.splits, draws)


class ClipSim(Metric):
    """Mean cosine of frames and caption. Higher is better."""

    title, needs = "CLIPSIM", frozenset({CAPTION})

    def __init__(self, clip: Clip) -> None:
        self.clip, self.layout = clip, clip_layout(clip)

    def rows(self, films: Sequence[Film]) -> Tensor:
        found = [clip_similarity(self.clip.images(units(f.frames)), self.clip.text(f.caption)) for f in films]
        return torch.stack(found)


class FirstFrameClip(Metric):
    """Cosine of first frame and given image. Higher is better."""

    title, needs = "FFF-CLIP", frozenset({GIVEN})

    def __init__(self, clip: Clip) -> None:
        self.clip, self.layout = clip, clip_layout(clip)

    def rows(self, films: Sequence[Film]) -> Tensor:
        firsts = torch.cat([self.clip.images(units(film.frames[:1])) for film in films])
        images = torch.cat([self.clip.images(units(given(film).unsqueeze(0))) for film in films])
        return first_frame_similarity(firsts, images)


class FirstFrameSsim(Metric):
    """SSIM of first frame and given image. Higher is better."""

    title, needs = "FFF-SSIM", frozenset({GIVEN})

    def __init__(self) -> None:
        self.layout = {"window": "Gaussian, 11 pixels, sigma 1.5", "range": "0..1", "size": "the video's own"}

    def rows(self, films: Sequence[Film]) -> Tensor:
        pairs = [(units(film.frames[0]), fitted(given(film), *film.frames.shape[-2:])) for film in films]
        return torch.cat([first_frame_ssim(first.unsqueeze(0), image.unsqueeze(0)) for first, image in pairs])


def given(film: Film) -> Tensor:
    if film.given is None:
        raise MetricError(f"{film.name} has no image that it was made from; give --images or --reference")
    return film.given


def fitted(image: Tensor, height: int, width: int) -> Tensor:
    """Bytes (3, h, w) -> 0..1 at the size of a video: its middle, of the aspect of the video, scaled."""
    return fit(units(image).unsqueeze(0), height, width, mode="bicubic")[0]


def clip_layout(clip: Clip) -> dict[str, Any]:
    return {
        **{"network": "CLIP", "size": clip.size, "range": "CLIP's mean and deviation", "channels": "RGB"},
        **asdict(clip.file),
    }


def enough(title: str, features: int, videos: int, references: int, few: bool) -> None:
    """MetricError unless both sets have more clips than features, so that their covariances are not singular."""
    least = 2 if few else features + 1
    if min(videos, references) < least:
        hint = "" if few else ", or allow a biased figure with --few"
        raise MetricError(
            f"{title}: {videos} videos and {references} of the reference; {least} of each are needed "
            f"(papers: 2,048 or more){hint}"
        )


def distance(rows: Tensor, reference: Tensor | None, draws: int) -> Interval:
    """Frechet distance to the reference, which is held; the interval is centred, see `bootstrap`."""
    if reference is None:
        raise MetricError("FVD: there is no reference; give --reference")
    real = moments(reference)
    return bootstrap(_guarded(lambda d: frechet_distance(real, moments(rows[d]))), len(rows), draws=draws, centred=True)


def score_of(rows: Tensor, splits: int, draws: int) -> Interval:
    """Inception Score; the interval is centred, for drawing again makes the samples more alike."""
    return bootstrap(lambda d: inception_score(rows[d], splits), len(rows), draws=draws, centred=True)


def _guarded(statistic: Callable[[Tensor], float]) -> Callable[[Tensor], float]:
    """A distance is not below 0; for equal sets rounding may say so."""
    return lambda drawn: max(0.0, statistic(drawn))
