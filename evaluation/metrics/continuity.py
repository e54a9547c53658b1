"""Continuity of a long video of clips: seams, flicker, drift and mirrored repeats, measured frame by frame.

A meter stores the frames of two clips and a few numbers per frame, whatever the length. Frames are RGB in 0..1,
(3, h, w). N frames of a clip; clips and frames are counted from 0 here, and from 1 in drawings.

seam      of clip i: (d(last of clip i - 1, first of clip i) + e) / (m + e), where d is the mean absolute difference,
          m the median d of adjacent frames inside the two clips, and e half an 8-bit step, so that a still video has no
          seams. 1: no visible seam; 3: the change at the seam is three times that of the motion around it.
flicker   of a frame: the mean absolute second difference over time around it.
drift     of a clip: mean, contrast (standard deviation) and saturation (largest minus smallest channel) of its
          pixels, minus those of clip 0.
mirror    of clip i: correlation of its frame j with frame N - 1 - j of the previous clip, both minus the mean image of
          the two clips, which removes the background. 1: the clip repeats the previous one backwards ("content
          cycling" of long videos with much reuse; VidRD, arXiv 2309.03549, section 5.3); about 0: unrelated. NaN if
          nothing changes in either clip.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

HALF_STEP = 0.5 / 255


@dataclass(frozen=True)
class Look:
    """Statistics of a clip's pixels, in 0..1."""

    mean: float
    contrast: float
    saturation: float

    def minus(self, other: "Look") -> "Look":
        return Look(self.mean - other.mean, self.contrast - other.contrast, self.saturation - other.saturation)


@dataclass
class Continuity:
    """The measurements of a meter."""

    clip: int  # N
    frames: int = 0
    differences: list[float] = field(default_factory=list)  # between frames i and i + 1
    flicker: list[float] = field(default_factory=list)  # around frame i + 1
    looks: list[Look] = field(default_factory=list)  # of each whole clip
    mirror: list[float] = field(default_factory=list)  # of clip i + 1 and the previous one

    @property
    def seams(self) -> list[float]:
        """Seams of clips 1, 2, ..., each as soon as its two clips are complete."""
        n, ratios = self.clip, []
        for first in range(n, self.frames - n + 1, n):
            usual = median(self.differences[first - n : first - 1] + self.differences[first : first + n - 1])
            ratios.append((self.differences[first - 1] + HALF_STEP) / (usual + HALF_STEP))
        return ratios

    @property
    def drift(self) -> list[Look]:
        """Drift of each clip, relative to the first."""
        return [look.minus(self.looks[0]) for look in self.looks]


class Meter:
    """Measures a video frame by frame; `reading` may be used at any time.

    ValueError when a clip has fewer than two frames, or the size of the frames changes.
    """

    def __init__(self, clip: int) -> None:
        if clip < 2:
            raise ValueError(f"continuity: clip is {clip}; give the number of frames of one clip, 2 or more")
        self.reading = Continuity(clip)
        self._clip: list[Tensor] = []  # the frames so far
        self._before: Tensor | None = None  # the previous clip, (N, 3, h, w)
        self._last: list[Tensor] = []  # two frames

    def add(self, frame: Tensor) -> None:
        reading = self.reading
        if self._last and frame.shape != self._last[-1].shape:
            raise ValueError(
                f"continuity: frame {reading.frames + 1} is {tuple(frame.shape)}, but the previous frames are "
                f"{tuple(self._last[-1].shape)}; all frames of a video must have the same size"
            )
        if self._last:
            reading.differences.append((frame - self._last[-1]).abs().mean().item())
        if len(self._last) == 2:
            reading.flicker.append((frame - 2 * self._last[1] + self._last[0]).abs().mean().item())
        self._last = [*self._last[-1:], frame]
        self._clip.append(frame)
        reading.frames += 1
        if len(self._clip) == reading.clip:
            self._clip_is_whole()

    def _clip_is_whole(self) -> None:
        clip, self._clip = torch.stack(self._clip), []
        self.reading.looks.append(look(clip))
        if self._before is not None:
            self.reading.mirror.append(mirror_similarity(self._before, clip))
        self._before = clip


def read(frames: Iterable[Tensor], clip: int) -> Continuity:
    """The continuity of a whole video."""
    meter = Meter(clip)
    for frame in frames:
        meter.add(frame)
    return meter.reading


def look(frames: Tensor) -> Look:  # (n, 3, h, w)
    saturation = frames.amax(1) - frames.amin(1)
    return Look(frames.mean().item(), frames.std(correction=0).item(), saturation.mean().item())


def mirror_similarity(before: Tensor, clip: Tensor) -> float:
    """Correlation of clip[j] and before[N - 1 - j], both minus their mean image; NaN if nothing changes."""
    middle = (before.mean(0) + clip.mean(0)) / 2
    a, b = (before.flip(0) - middle).flatten(), (clip - middle).flatten()
    size = math.sqrt(a.square().mean().item() * b.square().mean().item())
    return (a * b).mean().item() / size if size > HALF_STEP**2 else math.nan
