"""Scores of clips against their prompts, each with the interval in which it may as well have come out.

A score is a mean over clips of what `clip_values` says of each, or a function of the whole set (`still_ratio`,
`pocket_fvd`). Fractions, not percent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from .clips import ClipReading
from .statistics import Interval, bootstrap, frechet_distance, moments

MOVING = ("right", "left", "up", "down")
MEANS = ("direction", "colour", "shape", "background", "constancy", "agreement", "difference", "flicker")
Statistic = Callable[[Tensor], float]  # of the indices of the clips that are drawn


@dataclass(frozen=True)
class Wanted:
    """What a prompt says: indices of the judge's labels, and the motion in words."""

    colour: int
    shape: int
    background: int
    motion: str


@dataclass(frozen=True)
class Sample:
    """One set of clips, as the judges see them: what is scored."""

    readings: Sequence[ClipReading]
    wanted: Sequence[Wanted]
    features: Tensor | None = None  # (n, d) of the video judge; without them there is no pocket FVD

    def __post_init__(self) -> None:
        sizes = {len(self.readings), len(self.wanted), *([] if self.features is None else [len(self.features)])}
        if len(sizes) != 1:
            raise ValueError(f"score: {sorted(sizes)} readings, prompts and features; each clip needs one of each")


def clip_values(reading: ClipReading, wanted: Wanted) -> dict[str, float]:
    """What the judge says of one clip; NaN where the prompt does not ask for it.

    `direction`: whether the sprite went where a moving prompt says (chance is 1/4; a sprite not seen is a miss).
    `colour`, `shape`, `background`: share of frames that show the prompt's. `constancy`: one colour and one shape in
    all frames. `agreement`: share of frames like the majority. `difference`, `flicker`: first and second difference
    over time.
    """
    moving = wanted.motion in MOVING
    return {
        "direction": float(reading.direction == wanted.motion) if moving else nan,
        "colour": _share(reading.colours, wanted.colour),
        "shape": _share(reading.shapes, wanted.shape),
        "background": _share(reading.backgrounds, wanted.background),
        "constancy": float(reading.constant),
        "agreement": reading.agreement,
        "difference": reading.difference,
        "flicker": reading.flicker,
        "travel": reading.distance if moving else nan,
        "still_travel": reading.distance if wanted.motion == "still" else nan,
    }


def _share(labels: Sequence[int], wanted: int) -> float:
    return sum(label == wanted for label in labels) / len(labels)


def statistics(sample: Sample, reference: tuple[Tensor, Tensor] | None = None) -> dict[str, Statistic]:
    """Each score as a function of the clips that are drawn. reference: mean and covariance of real clips' features.

    `still_ratio`: mean displacement under "still" prompts over that under prompts with a direction.
    `pocket_fvd`: Frechet distance of features of the pocket's own video judge. It compares clips of the pocket's world
    with each other and has nothing to do with the FVD of papers but the formula.
    """
    rows = [clip_values(r, w) for r, w in zip(sample.readings, sample.wanted, strict=True)]
    columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
    found = {name: _mean(columns[name]) for name in MEANS}
    still, moving = _mean(columns["still_travel"]), _mean(columns["travel"])
    found["still_ratio"] = lambda drawn: still(drawn) / moving(drawn) if moving(drawn) else nan
    if reference is not None and sample.features is not None:
        features = sample.features
        found["pocket_fvd"] = lambda drawn: frechet_distance(moments(features[drawn]), reference)
    return found


def _mean(values: Tensor) -> Statistic:
    return lambda drawn: values[drawn].nanmean().item()


def score(
    sample: Sample, reference: tuple[Tensor, Tensor] | None = None, *, draws: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """All scores with 95 % bootstrap intervals over the clips.

    The interval of `pocket_fvd` is centred: a Frechet distance is biased upwards by small sets, so its figures can be
    compared at one number of clips only.
    """
    count = len(sample.readings)
    return {
        name: bootstrap(statistic, count, draws=draws, seed=seed, centred=name == "pocket_fvd")
        for name, statistic in statistics(sample, reference).items()
    }


def compare(
    sample: Sample,
    base: Sample,
    reference: tuple[Tensor, Tensor] | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """`sample` minus `base`, drawn in pairs: the same prompts and seeds in the same order, so that luck cancels out.

    A change is one that its interval parts from 0. ValueError when the prompts are not the same.
    """
    if list(sample.wanted) != list(base.wanted):
        raise ValueError("compare: the two sets of clips were made for other prompts; make both for the same, in order")
    one, other = statistics(sample, reference), statistics(base, reference)
    return {
        name: bootstrap(
            lambda drawn, name=name: one[name](drawn) - other[name](drawn),
            len(base.readings),
            draws=draws,
            seed=seed,
            centred=name == "pocket_fvd",
        )
        for name in one
        if name in other
    }


def joined(parts: Sequence[Sample]) -> Sample:
    """Sets of clips as one, in their order."""
    features = [part.features for part in parts if part.features is not None]
    return Sample(
        [reading for part in parts for reading in part.readings],
        [wanted for part in parts for wanted in part.wanted],
        torch.cat(features) if features else None,
    )
