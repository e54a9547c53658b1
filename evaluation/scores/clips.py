"""Properties of a clip, measured with the judge. Shapes: n clips, f frames; images RGB in 0..1.

Positions are in image widths, x to the right and y down.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..judges.judge import Judge


@dataclass(frozen=True)
class ClipReading:
    """The judge's reading of one clip."""

    colours: list[int]  # per frame
    shapes: list[int]
    backgrounds: list[int]
    displacement: tuple[float, float]  # last minus first visible centre; (nan, nan) if visible in fewer than two frames
    difference: float  # mean |frame[i+1] - frame[i]|
    flicker: float  # mean |frame[i+1] - 2 frame[i] + frame[i-1]|

    @property
    def distance(self) -> float:
        """Length of the displacement; 0 if there is no sprite."""
        x, y = self.displacement
        return 0.0 if x != x else (x * x + y * y) ** 0.5

    @property
    def direction(self) -> str | None:
        """The direction of the larger component of the displacement."""
        x, y = self.displacement
        if x != x:
            return None
        return ("right" if x > 0 else "left") if abs(x) > abs(y) else ("down" if y > 0 else "up")

    @property
    def constant(self) -> bool:
        """Whether colour and shape are the same in every frame."""
        return len(set(self.colours)) == 1 and len(set(self.shapes)) == 1

    @property
    def agreement(self) -> float:
        """Share of frames with the clip's most frequent pair of colour and shape."""
        pairs = list(zip(self.colours, self.shapes, strict=True))
        return max(pairs.count(p) for p in set(pairs)) / len(pairs)


@torch.no_grad()
def read_clip(judge: Judge, frames: Tensor) -> ClipReading:  # frames: (f, 3, 64, 64)
    verdict = judge(frames)
    return ClipReading(
        colours=verdict.labels("colour").tolist(),
        shapes=verdict.labels("shape").tolist(),
        backgrounds=verdict.labels("background").tolist(),
        displacement=displacement(verdict.centres()),
        difference=frame_difference(frames),
        flicker=flicker(frames),
    )


def displacement(centres: Tensor) -> tuple[float, float]:
    """Last minus first centre of the frames that have one. centres: (f, 2), NaN without a sprite."""
    visible = centres[~centres.isnan().any(1)]
    if len(visible) < 2:
        return float("nan"), float("nan")
    x, y = (visible[-1] - visible[0]).tolist()
    return x, y


def frame_difference(frames: Tensor) -> float:
    """Mean absolute difference of adjacent frames; frames: (f, ...)."""
    return frames.diff(dim=0).abs().mean().item()


def flicker(frames: Tensor) -> float:
    """Mean absolute second difference over time: 0 for uniform change, large if a change is reversed at once.

    frames: (f, ...); NaN for fewer than three frames, which have no second difference.
    """
    return frames.diff(n=2, dim=0).abs().mean().item() if len(frames) > 2 else float("nan")
