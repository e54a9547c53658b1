"""Frechet distance, bootstrap and the test of normality against closed forms and scipy."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from stillmotion.evaluation.scores.statistics import (
    Interval,
    bootstrap,
    frechet_distance,
    jarque_bera,
    moments,
    normality,
)


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


def spd(d, g):
    root = torch.randn(d, d, generator=g, dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(d, dtype=torch.float64)


def test_the_distance_of_gaussians_on_one_line_is_that_of_means_and_deviations():
    """In one dimension: (m1 - m2)^2 + (s1 - s2)^2."""
    one = torch.tensor([1.0]), torch.tensor([[4.0]])
    other = torch.tensor([4.0]), torch.tensor([[0.25]])
    assert frechet_distance(one, other) == pytest.approx(3.0**2 + 1.5**2)


def test_the_distance_is_scipys_matrix_root(g):
    for d in (2, 5, 16):
        mean_a, mean_b = torch.randn(2, d, generator=g, dtype=torch.float64)
        a, b = spd(d, g), spd(d, g)
        root = np.real(scipy.linalg.sqrtm((a @ b).numpy()))
        expected = (mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * root.trace()
        assert frechet_distance((mean_a, a), (mean_b, b)) == pytest.approx(expected.item(), rel=1e-9)


def test_the_distance_is_symmetric_zero_to_itself_and_blind_to_a_rotation(g):
    a, b = moments(torch.randn(40, 6, generator=g)), moments(2 * torch.randn(50, 6, generator=g) + 1)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64))[0]
    turned = [(mean @ turn, turn.T @ cov @ turn) for mean, cov in (a, b)]
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(*turned), rel=1e-9)


def test_fewer_samples_than_features_give_a_finite_distance(g):
    a, b = moments(torch.randn(5, 20, generator=g)), moments(torch.randn(7, 20, generator=g))
    assert math.isfinite(frechet_distance(a, b))


def test_moments_are_those_of_torch_and_one_sample_has_none(g):
    x = torch.randn(30, 4, generator=g)
    torch.testing.assert_close(moments(x)[1], torch.cov(x.double().T))
    with pytest.raises(ValueError, match="n of 2 or more"):
        moments(x[:1])


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation(g):
    x = torch.randn(400, generator=g)
    interval = bootstrap(lambda indices: x[indices].mean().item(), 400, seed=3)
    half = 1.96 * x.std().item() / 20
    assert interval.value == pytest.approx(x.mean().item())
    assert interval.low == pytest.approx(interval.value - half, abs=0.015)
    assert interval.high == pytest.approx(interval.value + half, abs=0.015)


def test_nineteen_of_twenty_intervals_hold_the_truth(g):
    hits = 0
    for seed in range(100):
        x = (torch.rand(60, generator=g) < 0.3).double()
        interval = bootstrap(lambda indices, x=x: x[indices].mean().item(), 60, seed=seed, draws=200)
        hits += interval.low <= 0.3 <= interval.high
    assert 86 <= hits <= 99


def test_a_seed_is_an_interval_and_another_seed_another(g):
    x = torch.randn(50, generator=g)

    def again(seed):
        return bootstrap(lambda indices: x[indices].mean().item(), 50, seed=seed, draws=50)

    assert again(1) == again(1) != again(2)


def test_a_centred_interval_lies_around_a_figure_that_every_draw_makes_larger(g):
    """The Frechet distance of a resampled set is biased upwards, so that plain quantiles miss the value itself."""
    x, truth = torch.randn(40, 16, generator=g), moments(torch.randn(2000, 16, generator=g))

    def distance(indices):
        return frechet_distance(moments(x[indices]), truth)

    plain, centred = (bootstrap(distance, 40, draws=200, centred=shifted) for shifted in (False, True))
    assert plain.low > plain.value
    assert centred.low < centred.value == plain.value < centred.high
    assert centred.high - centred.low == pytest.approx(plain.high - plain.low)


def test_nothing_to_count_is_nan_and_no_samples_are_an_error():
    interval = bootstrap(lambda indices: math.nan, 4, draws=5)
    assert math.isnan(interval.value)
    assert math.isnan(interval.low)
    with pytest.raises(ValueError, match="no samples"):
        bootstrap(lambda indices: 0.0, 0)


def test_an_interval_is_readable():
    assert str(Interval(0.5, 0.4, 0.61)) == "0.500 [0.400, 0.610]"
    assert str(Interval(512.3, 480.0, 550.0)) == "512.3 [480.0, 550.0]"


def test_jarque_bera_is_scipys(g):
    samples = torch.stack(
        [torch.randn(500, generator=g), torch.rand(500, generator=g), torch.randn(500, generator=g) ** 3]
    )
    statistic, p = jarque_bera(samples)
    for row, measure, chance in zip(samples.double(), statistic, p, strict=True):
        expected, likely = scipy.stats.jarque_bera(row.numpy())
        assert measure.item() == pytest.approx(expected, rel=1e-9)
        assert chance.item() == pytest.approx(likely, rel=1e-6, abs=1e-300)


def test_samples_that_cannot_be_tested_are_refused():
    with pytest.raises(ValueError, match="all numbers of a sample are equal"):
        jarque_bera(torch.ones(2, 20))
    with pytest.raises(ValueError, match="8 or more"):
        jarque_bera(torch.randn(2, 5))
    with pytest.raises(ValueError, match="clips, frames"):
        normality(torch.randn(4, 30))


def test_independent_noise_passes_in_95_of_100_and_shared_noise_in_fewer(g):
    clips, frames, elements = 500, 16, 128
    independent, shared = (
        torch.randn(clips, frames, elements, generator=g),
        torch.randn(clips, 1, elements, generator=g),
    )
    iid, mixed = normality(independent), normality((independent + shared) / 2**0.5)
    assert 0.93 <= iid.pass_rate.value <= 0.98
    assert iid.correlation == pytest.approx(0, abs=0.01)
    assert mixed.pass_rate.high < iid.pass_rate.low
    assert 0.62 <= mixed.pass_rate.value <= 0.80  # 71.5 % in the limit of many elements
    assert mixed.correlation == pytest.approx(0.5, abs=0.01)
    assert mixed.deviation == pytest.approx(1, abs=0.01)
    assert (iid.samples, iid.elements) == (500, 2048)


def test_noise_of_one_frame_has_no_neighbours(g):
    assert math.isnan(normality(torch.randn(3, 1, 100, generator=g)).correlation)
