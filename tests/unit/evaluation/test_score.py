"""Scores are computed from the judge's readings, their intervals by bootstrap over the clips."""

import math
from dataclasses import replace

import pytest
import torch

from stillmotion.evaluation.scores.clips import ClipReading, flicker, frame_difference
from stillmotion.evaluation.scores.report import COLUMNS, markdown, origin
from stillmotion.evaluation.scores.score import PromptLabels, Sample, compare, concatenate, score
from stillmotion.evaluation.scores.statistics import Interval, moments

RIGHT = PromptLabels(colour=1, shape=2, background=3, motion="right")
STILL = replace(RIGHT, motion="still")
GOOD = ClipReading([1] * 4, [2] * 4, [3] * 4, (0.4, 0.1), 0.02, 0.01)
REST = replace(GOOD, displacement=(0.02, 0.0), difference=0.001)
WRONG = ClipReading([1, 1, 0, 0], [2, 2, 2, 5], [3, 3, 3, 0], (0.0, -0.4), 0.06, 0.09)


def scored(readings, prompts, **options):
    return score(Sample(readings, prompts), **{"draws": 50, **options})


def test_correct_clips_have_perfect_scores():
    scores = scored([GOOD, GOOD, REST], [RIGHT, RIGHT, STILL])
    for name in ("direction", "colour", "shape", "background", "constancy", "agreement"):
        assert scores[name] == Interval(1, 1, 1)
    assert scores["still_ratio"].value == pytest.approx(0.02 / math.hypot(0.4, 0.1))


def test_each_score_is_the_share_of_correct_clips():
    scores = scored([GOOD, WRONG], [RIGHT, RIGHT])
    expected = {"direction": 0.5, "colour": 0.75, "shape": 0.875, "background": 0.875, "constancy": 0.5}
    assert {name: scores[name].value for name in expected} == expected
    assert scores["agreement"].value == pytest.approx((1 + 0.5) / 2)
    assert scores["flicker"].value == pytest.approx(0.05)
    assert all(i.low <= i.value <= i.high for i in scores.values() if i.value == i.value)


def test_a_prompt_without_a_direction_does_not_count_for_it():
    assert scored([WRONG, GOOD], [STILL, RIGHT])["direction"].value == 1
    assert math.isnan(scored([GOOD], [STILL])["direction"].value)
    unseen = replace(GOOD, displacement=(math.nan, math.nan))
    assert scored([unseen, GOOD], [RIGHT, RIGHT])["direction"].value == 0.5


def test_more_clips_make_the_interval_narrower():
    few, many = (scored([GOOD, WRONG] * n, [RIGHT] * 2 * n, draws=200)["direction"] for n in (5, 80))
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_pairs_show_a_difference_that_the_two_intervals_hide():
    """Half of the prompts are hard for both models; on one in twelve of all prompts the second model is better."""
    prompts = [RIGHT] * 120
    base = [GOOD] * 60 + [WRONG] * 60
    better = [GOOD] * 70 + [WRONG] * 50
    one, other = (scored(r, prompts, draws=300)["direction"] for r in (base, better))
    gain = compare(Sample(better, prompts), Sample(base, prompts), draws=300)["direction"]
    assert one.high > other.low
    assert gain.value == pytest.approx(10 / 120)
    assert gain.low > 0
    with pytest.raises(ValueError, match="different prompts"):
        compare(Sample(better, prompts), Sample(base[:2], [STILL, RIGHT]))


def test_the_distance_is_small_for_features_of_the_same_kind_and_grows_with_a_shift():
    g = torch.Generator().manual_seed(0)
    real = moments(torch.randn(2000, 8, generator=g))
    features = torch.randn(200, 8, generator=g)
    sample = Sample([GOOD] * 200, [RIGHT] * 200, features)
    same = score(sample, real, draws=40)["pocket_fvd"]
    far = score(replace(sample, features=features + 1), real, draws=40)["pocket_fvd"]
    assert same.value < 0.2
    assert far.value == pytest.approx(8, rel=0.15)
    assert far.low <= far.value <= far.high
    assert "pocket_fvd" not in score(Sample([GOOD], [RIGHT]), real, draws=2)


def test_sets_that_were_scored_apart_are_one_set():
    features = torch.arange(6.0).view(3, 2)
    whole = Sample([GOOD, WRONG, REST], [RIGHT, RIGHT, STILL], features)
    parts = [Sample(whole.readings[a:b], whole.prompts[a:b], features[a:b]) for a, b in ((0, 1), (1, 3))]
    again = concatenate(parts)
    assert (again.readings, again.prompts) == (whole.readings, whole.prompts)
    assert again.features is not None
    assert torch.equal(again.features, features)
    with pytest.raises(ValueError, match="readings, prompts and features differ"):
        Sample([GOOD], [RIGHT, STILL])


def test_flicker_is_a_change_that_is_reverted():
    even = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 4, 4)
    restless = torch.tensor([0.0, 1.0] * 4).view(8, 1, 1, 1).expand(8, 3, 4, 4)
    assert frame_difference(even) == frame_difference(restless) == 1
    assert flicker(even) == 0
    assert flicker(restless) == 2
    assert math.isnan(flicker(even[:2]))


def test_the_table_has_a_row_per_model_and_empty_cells_for_missing_values():
    rows = {"baseline": scored([GOOD, WRONG], [RIGHT, RIGHT]), "paper": {"pocket_fvd": Interval(3.0, 2.0, 4.0)}}
    lines = markdown(rows).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 2}
    assert lines[0].startswith("| | pocket FVD | flicker |")
    assert lines[2].startswith("| baseline | | ")
    assert lines[3].startswith("| paper | 3.000 [2.000, 4.000] | |")
    assert f"{rows['baseline']['colour']}" in lines[2]


def test_the_origin_of_a_table_is_named():
    line = origin(["python", "-m", "stillmotion.training", "ablate"], prompts=200, seeds=1)
    assert "`python -m stillmotion.training ablate`" in line
    assert line.endswith("; prompts 200; seeds 1.")
    assert "commit " in line
