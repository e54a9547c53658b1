"""What a clip does, measured on what the judge sees. Shapes: n clips, f frames; images RGB in 0..1.

Positions are in image widths, x to the right and y down.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..judges.judge import Judge


@dataclass(frozen=True)
class ClipReading:
    """One clip as the judge sees it."""

    colours: list[int]  # per frame
    shapes: list[int]
    backgrounds: list[int]
    displacement: tuple[float, float]  # last minus first visible centre; (nan, nan) when the sprite is not seen twice
    difference: float  # mean |frame[i+1] - frame[i]|
    flicker: float  # mean |frame[i+1] - 2 frame[i] + frame[i-1]|

    @property
    def distance(self) -> float:
        """Length of the displacement; 0 when there is no sprite to move."""
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
        """Colour and shape are the same in every frame."""
        return len(set(self.colours)) == 1 and len(set(self.shapes)) == 1

    @property
    def agreement(self) -> float:
        """Share of frames that show the clip's most frequent pair of colour and shape."""
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
    """Last minus first centre among the frames in which there is one. centres: (f, 2), NaN where there is none."""
    seen = centres[~centres.isnan().any(1)]
    if len(seen) < 2:
        return float("nan"), float("nan")
    x, y = (seen[-1] - seen[0]).tolist()
    return x, y


def frame_difference(frames: Tensor) -> float:
    """Mean absolute difference of adjacent frames; frames: (f, ...)."""
    return frames.diff(dim=0).abs().mean().item()


def flicker(frames: Tensor) -> float:
    """Mean absolute second difference over time: 0 for even change, large where a change is taken back at once.

    frames: (f, ...); NaN below three frames, which have no second difference.
    """
    return frames.diff(n=2, dim=0).abs().mean().item() if len(frames) > 2 else float("nan")
