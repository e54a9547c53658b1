"""Scores of clips for their prompts, each with a confidence interval.

A score is the mean over clips of a value from `clip_values`, or a function of the whole set (`still_ratio`,
`pocket_fvd`). Scores are fractions, not percent.
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
Statistic = Callable[[Tensor], float]  # of the indices of the drawn clips


@dataclass(frozen=True)
class PromptLabels:
    """The content of a prompt: indices of the judge's labels, and the motion as a word."""

    colour: int
    shape: int
    background: int
    motion: str


@dataclass(frozen=True)
class Sample:
    """The judges' readings of one set of clips, to be scored."""

    readings: Sequence[ClipReading]
    prompts: Sequence[PromptLabels]
    features: Tensor | None = None  # (n, d) of the video judge, needed for pocket FVD

    def __post_init__(self) -> None:
        sizes = {len(self.readings), len(self.prompts), *([] if self.features is None else [len(self.features)])}
        if len(sizes) != 1:
            raise ValueError(
                f"score: the numbers of readings, prompts and features differ ({sorted(sizes)}); give one per clip"
            )


def clip_values(reading: ClipReading, prompt: PromptLabels) -> dict[str, float]:
    """The values of one clip; NaN where they do not apply to the prompt.

    `direction`: whether the sprite moved in the direction of a prompt with motion (chance is 1/4; an invisible sprite
    is a miss). `colour`, `shape`, `background`: share of frames with the class of the prompt. `constancy`: one colour
    and one shape in all frames. `agreement`: share of frames like the majority. `difference`, `flicker`: first and
    second difference over time.
    """
    moving = prompt.motion in MOVING
    return {
        "direction": float(reading.direction == prompt.motion) if moving else nan,
        "colour": _share(reading.colours, prompt.colour),
        "shape": _share(reading.shapes, prompt.shape),
        "background": _share(reading.backgrounds, prompt.background),
        "constancy": float(reading.constant),
        "agreement": reading.agreement,
        "difference": reading.difference,
        "flicker": reading.flicker,
        "travel": reading.distance if moving else nan,
        "still_travel": reading.distance if prompt.motion == "still" else nan,
    }


def _share(labels: Sequence[int], prompt: int) -> float:
    return sum(label == prompt for label in labels) / len(labels)


def statistics(sample: Sample, reference: tuple[Tensor, Tensor] | None = None) -> dict[str, Statistic]:
    """Each score as a function of the drawn clips. reference: mean and covariance of the features of real clips.

    `still_ratio`: mean displacement for "still" prompts divided by that for prompts with a direction.
    `pocket_fvd`: Frechet distance of features of the pocket's video judge. It compares clips of the pocket's world, and
    shares only its formula with the FVD of papers.
    """
    rows = [clip_values(r, w) for r, w in zip(sample.readings, sample.prompts, strict=True)]
    columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
    functions = {name: _mean(columns[name]) for name in MEANS}
    still, moving = _mean(columns["still_travel"]), _mean(columns["travel"])
    functions["still_ratio"] = lambda indices: still(indices) / moving(indices) if moving(indices) else nan
    if reference is not None and sample.features is not None:
        features = sample.features
        functions["pocket_fvd"] = lambda indices: frechet_distance(moments(features[indices]), reference)
    return functions


def _mean(values: Tensor) -> Statistic:
    return lambda indices: values[indices].nanmean().item()


def score(
    sample: Sample, reference: tuple[Tensor, Tensor] | None = None, *, draws: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """All scores with 95 % bootstrap intervals over the clips.

    The interval of `pocket_fvd` is centred: a Frechet distance has an upward bias for small sets, so its values are
    only comparable for equal numbers of clips.
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
    """`sample` minus `base`, drawn in pairs: with the same prompts and seeds in the same order, chance cancels out.

    A change is significant if its interval excludes 0. ValueError when the prompts differ.
    """
    if list(sample.prompts) != list(base.prompts):
        raise ValueError(
            "compare: the two sets of clips have different prompts; use the same prompts in the same order"
        )
    first, second = statistics(sample, reference), statistics(base, reference)
    return {
        name: bootstrap(
            lambda indices, name=name: first[name](indices) - second[name](indices),
            len(base.readings),
            draws=draws,
            seed=seed,
            centred=name == "pocket_fvd",
        )
        for name in first
        if name in second
    }


def concatenate(parts: Sequence[Sample]) -> Sample:
    """Several sets of clips as one, in order."""
    features = [part.features for part in parts if part.features is not None]
    return Sample(
        [reading for part in parts for reading in part.readings],
        [prompt for part in parts for prompt in part.prompts],
        torch.cat(features) if features else None,
    )
