"""The metrics of video papers. Each computes rows per video and a value from the rows, so that it can be bootstrapped.

FVD: Unterthiner et al., arXiv 1812.01717. `layout` describes the input of each network, for reports. Shapes: a video is
f frames of 3 x h x w bytes; the videos of one run may have different sizes.
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

CAPTION, IMAGE, REFERENCE = "caption", "given image", "reference"
DRAWS = 200


@dataclass(frozen=True)
class VideoSample:
    """The part of a video that is evaluated."""

    name: str
    frames: Tensor  # (f, 3, h, w) bytes
    caption: str = ""
    image: Tensor | None = None  # (3, h, w) bytes: the image from which the video was generated


class Metric(ABC):
    """A metric; by default the mean of one value per video.

    needs: some of CAPTION, IMAGE, REFERENCE. frames: valid numbers of frames; a large end means no limit. layout: a
    description of the network and its input, for the report.
    """

    title: str
    needs: frozenset[str]
    frames = range(1, 10**6)
    layout: dict[str, Any]

    @abstractmethod
    def rows(self, videos: Sequence[VideoSample]) -> Tensor:
        """One row per video: (n, ...)."""

    def check(self, videos: int, references: int, /) -> None:  # noqa: B027  by default, any number is enough
        """MetricError when there are too few videos."""

    def compute(self, rows: Tensor, _reference: Tensor | None, draws: int, /) -> Interval:
        """The value and its interval. NaN rows, for videos to which the metric does not apply, are ignored."""
        values = rows.double()
        return bootstrap(lambda d: values[d].nanmean().item(), len(rows), draws=max(draws, 1000))


def units(frames: Tensor) -> Tensor:
    """Bytes to 0..1."""
    return frames.float() / 255


class Fvd(Metric):
    """Frechet distance of I3D's features of generated and real clips. Lower is better.

    few: allow sets with no more clips than features. Their covariance is singular, so the value has a large upward bias
    and is only comparable for equal numbers of clips.
    """

    title, needs, frames = "FVD", frozenset({REFERENCE}), range(i3d.SHORTEST, 10**6)

    def __init__(self, network: VideoFeatures, *, few: bool = False) -> None:
        self.network, self.few = network, few
        self.layout = {
            **{"network": "I3D, Kinetics-400, logits", "protocol": network.protocol, "size": i3d.SIZE},
            **{"range": "-1..1", "channels": "RGB", **asdict(network.file)},
        }

    def rows(self, videos: Sequence[VideoSample]) -> Tensor:
        return self.network([video.frames for video in videos])

    def check(self, videos: int, references: int, /) -> None:
        check_counts(self.title, i3d.CLASSES, videos, references, self.few)

    def compute(self, rows: Tensor, reference: Tensor | None, draws: int, /) -> Interval:
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

    def rows(self, videos: Sequence[VideoSample]) -> Tensor:
        return self.network([video.frames for video in videos])

    def check(self, videos: int, _references: int, /) -> None:
        if videos < 2 * self.splits:
            raise MetricError(
                f"IS: there are {videos} videos for {self.splits} splits; give {2 * self.splits} videos or more, or "
                "fewer --splits (papers: 10,000 videos, 10 splits)"
            )

    def compute(self, rows: Tensor, _reference: Tensor | None, draws: int, /) -> Interval:
        return score_of(rows, self.splits, draws)


class ClipSim(Metric):
    """Mean cosine similarity of frames and caption. Higher is better."""

    title, needs = "CLIPSIM", frozenset({CAPTION})

    def __init__(self, clip: Clip) -> None:
        self.clip, self.layout = clip, clip_layout(clip)

    def rows(self, videos: Sequence[VideoSample]) -> Tensor:
        similarities = [clip_similarity(self.clip.images(units(f.frames)), self.clip.text(f.caption)) for f in videos]
        return torch.stack(similarities)


class FirstFrameClip(Metric):
    """Cosine similarity of the first frame and the source image. Higher is better."""

    title, needs = "FFF-CLIP", frozenset({IMAGE})

    def __init__(self, clip: Clip) -> None:
        self.clip, self.layout = clip, clip_layout(clip)

    def rows(self, videos: Sequence[VideoSample]) -> Tensor:
        firsts = torch.cat([self.clip.images(units(video.frames[:1])) for video in videos])
        images = torch.cat([self.clip.images(units(source_image(video).unsqueeze(0))) for video in videos])
        return first_frame_similarity(firsts, images)


class FirstFrameSsim(Metric):
    """SSIM of the first frame and the source image. Higher is better."""

    title, needs = "FFF-SSIM", frozenset({IMAGE})

    def __init__(self) -> None:
        self.layout = {"window": "Gaussian, 11 pixels, sigma 1.5", "range": "0..1", "size": "the video's own"}

    def rows(self, videos: Sequence[VideoSample]) -> Tensor:
        pairs = [
            (units(video.frames[0]), resize_and_crop(source_image(video), *video.frames.shape[-2:])) for video in videos
        ]
        return torch.cat([first_frame_ssim(first.unsqueeze(0), image.unsqueeze(0)) for first, image in pairs])


def source_image(video: VideoSample) -> Tensor:
    if video.image is None:
        raise MetricError(f"{video.name} has no source image; give --images or --reference")
    return video.image


def resize_and_crop(image: Tensor, height: int, width: int) -> Tensor:
    """Bytes (3, h, w) -> 0..1, centre-cropped to the aspect ratio of a video and scaled to its size."""
    return fit(units(image).unsqueeze(0), height, width, mode="bicubic")[0]


def clip_layout(clip: Clip) -> dict[str, Any]:
    return {
        **{"network": "CLIP", "size": clip.size, "range": "CLIP's mean and deviation", "channels": "RGB"},
        **asdict(clip.file),
    }


def check_counts(title: str, features: int, videos: int, references: int, few: bool) -> None:
    """MetricError unless both sets have more clips than features, so that their covariances are not singular."""
    least = 2 if few else features + 1
    if min(videos, references) < least:
        hint = "" if few else ", or allow a biased value with --few"
        raise MetricError(
            f"{title}: there are {videos} videos and {references} reference videos; give {least} of each "
            f"(papers: 2,048 or more){hint}"
        )


def distance(rows: Tensor, reference: Tensor | None, draws: int) -> Interval:
    """Frechet distance to the reference, which is not resampled; the interval is centred, see `bootstrap`."""
    if reference is None:
        raise MetricError("FVD: the reference is missing; give --reference")
    real = moments(reference)
    return bootstrap(
        _not_negative(lambda d: frechet_distance(real, moments(rows[d]))), len(rows), draws=draws, centred=True
    )


def score_of(rows: Tensor, splits: int, draws: int) -> Interval:
    """Inception Score; the interval is centred, because resampling makes the samples more alike."""
    return bootstrap(lambda d: inception_score(rows[d], splits), len(rows), draws=draws, centred=True)


def _not_negative(statistic: Callable[[Tensor], float]) -> Callable[[Tensor], float]:
    """Clamp a distance at 0, because rounding can make it negative for equal sets."""
    return lambda indices: max(0.0, statistic(indices))
