"""Scores over prompts: how often the judge sees what the prompt says. Fractions, not percent."""

from collections.abc import Sequence

from .clips import ClipReading

MOVING = ("right", "left", "up", "down")


def obeyed(labels: Sequence[Sequence[int]], wanted: Sequence[int]) -> float:
    """Share of all frames whose label is the wanted one of their prompt; one list of labels per prompt."""
    hits = [label == want for frames, want in zip(labels, wanted, strict=True) for label in frames]
    return sum(hits) / len(hits)


def direction_score(readings: Sequence[ClipReading], motions: Sequence[str]) -> float:
    """Share of the prompts with a direction whose sprite went there (chance is 1/4; a sprite not seen is a miss)."""
    hits = [r.direction == m for r, m in zip(readings, motions, strict=True) if m in MOVING]
    return sum(hits) / len(hits) if hits else float("nan")


def still_ratio(readings: Sequence[ClipReading], motions: Sequence[str]) -> float:
    """Mean displacement under "still" prompts over that under prompts with a direction."""
    still = [r.distance for r, m in zip(readings, motions, strict=True) if m == "still"]
    moving = [r.distance for r, m in zip(readings, motions, strict=True) if m in MOVING]
    if not still or not moving or not sum(moving):
        return float("nan")
    return (sum(still) / len(still)) / (sum(moving) / len(moving))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
