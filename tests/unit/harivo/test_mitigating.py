"""The mitigating gradient, compared with energies that torch differentiates, and on a toy denoiser."""

import math
from itertools import product

import pytest
import torch

from stillmotion.model_patches.core import levels
from stillmotion.model_patches.harivo.mitigating import (
    BANDWIDTHS,
    JACOBIANS,
    KERNELS,
    LARGEST_SIGMA,
    Config,
    effective_alpha,
    mitigate,
)

COMBINATIONS = list(product(KERNELS, BANDWIDTHS, JACOBIANS))
PLAIN = {"max_eps_ratio": 0.0, "compensate_size": False, "compensate_frames": False}  # the bare formulas


@pytest.fixture
def clip():
    """x_0 of 7 frames that drift, and noise, float64, (f, c, h, w)."""
    generator = torch.Generator().manual_seed(3)
    drift = 0.2 * torch.randn(7, 4, 3, 5, generator=generator, dtype=torch.float64).cumsum(0)
    x0 = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64) + drift
    return x0, torch.randn(x0.shape, generator=generator, dtype=torch.float64)


def energy(x0, config):
    """G, with norms and logarithms as in the text; the bandwidth is detached from the gradient."""
    pairs = list(zip(x0[:-1].flatten(1), x0[1:].flatten(1), strict=True))
    distance = torch.stack([(b - a).norm() for a, b in pairs])
    if config.bandwidth == "fixed":
        variance = config.variance * pairs[0][0].numel()
    else:
        variance = distance.detach().median() ** 2 / (2 * math.log(len(x0)))
    kernels = torch.exp(-(distance**2) / (2 * variance))
    return {"rbf": kernels.sum(), "log": kernels.log().mean(), "logsum": kernels.sum().log()}[config.kernel]


@pytest.mark.parametrize("sigma", [0.3, 14.6])
@pytest.mark.parametrize(("kernel", "bandwidth", "jacobian"), COMBINATIONS)
def test_the_closed_form_is_the_guidance_equation_differentiated_by_autograd(clip, sigma, kernel, bandwidth, jacobian):
    x0, eps = clip
    config = Config(kernel=kernel, bandwidth=bandwidth, jacobian=jacobian, **PLAIN)
    alpha_bar = levels.alpha_bar_from_sigma(torch.tensor(sigma, dtype=torch.float64))
    x_t = (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps).requires_grad_()
    predicted = (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()  # eps is constant
    (g,) = torch.autograd.grad(energy(predicted, config), x_t if jacobian == "exact" else predicted)
    guided = eps - config.alpha * (1 - alpha_bar).sqrt() * g
    expected = ((x_t - (1 - alpha_bar).sqrt() * guided) / alpha_bar.sqrt()).detach()

    result, effect = mitigate(x0, eps, sigma, config, frames=7)
    scale = (expected - x0).abs().max()
    assert scale > 0
    assert (result - expected).abs().max() < 1e-10 * max(1, scale)
    assert effect.eps_ratio.item() == pytest.approx(((guided - eps).norm() / eps.norm()).item(), rel=1e-10)


def test_the_median_is_a_constant_to_the_gradient(clip):
    """Differentiating through the bandwidth moves the median pair much more, which is another method."""
    x0, eps = clip
    config = Config(**PLAIN)
    x = x0.clone().requires_grad_()
    distance = (x[1:] - x[:-1]).flatten(1).norm(dim=1)
    attached = torch.exp(-(distance**2) * math.log(7) / distance.median() ** 2).sum()
    (through,) = torch.autograd.grad(attached, x)
    (gradient,) = torch.autograd.grad(energy(x, config), x)
    assert (through - gradient).norm() > 0.1 * gradient.norm()
    result, _ = mitigate(x0, eps, 1.0, config, frames=7)
    torch.testing.assert_close(result - x0, 40 / math.sqrt(2) * gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kernel", "bandwidth", "jacobian"), COMBINATIONS)
def test_identical_frames_feel_no_force(kernel, bandwidth, jacobian):
    x0 = torch.randn(1, 4, 8, 8).repeat(6, 1, 1, 1)
    config = Config(kernel=kernel, bandwidth=bandwidth, jacobian=jacobian)
    result, effect = mitigate(x0, torch.randn_like(x0), 14.6, config, frames=6)
    assert torch.equal(result, x0)
    assert effect.eps_ratio == 0
    assert effect.before == effect.after == 0


@pytest.mark.parametrize(("kernel", "bandwidth", "jacobian"), COMBINATIONS)
def test_the_mean_frame_stays_where_it_is(clip, kernel, bandwidth, jacobian):
    x0, eps = clip
    config = Config(kernel=kernel, bandwidth=bandwidth, jacobian=jacobian)
    result, _ = mitigate(x0, eps, 2.0, config, frames=7)
    assert not torch.equal(result, x0)
    torch.testing.assert_close(result.mean(0), x0.mean(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frames", [2, 3, 16])
def test_neighbours_come_closer(frames):
    generator = torch.Generator().manual_seed(frames)
    x0, eps = torch.randn(2, frames, 4, 16, 16, generator=generator)
    _, effect = mitigate(x0, eps, 1.0, Config(alpha=4.0), frames=frames)
    assert 0 < effect.after < effect.before


def test_the_log_kernel_pulls_an_outlier_harder_than_its_neighbours_and_rbf_lets_it_be():
    x0 = torch.zeros(8, 1, 4, 4)
    x0 += 0.1 * torch.arange(8).view(8, 1, 1, 1)
    x0[5:] += 3.0
    moves = {}
    for kernel in ("rbf", "log"):
        result, _ = mitigate(x0, torch.randn_like(x0), 1.0, Config(kernel=kernel, alpha=0.01), frames=8)
        moves[kernel] = (result - x0).flatten(1).norm(dim=1)
    assert moves["log"][4] > 10 * moves["log"][1]
    assert moves["rbf"][4] < moves["rbf"][0] * 1.01


@pytest.mark.parametrize("cap", [0.02, 0.2, 0.5])
@pytest.mark.parametrize("alpha", [40.0, 4000.0])
def test_the_change_of_eps_stays_under_the_cap_and_keeps_its_direction(clip, cap, alpha):
    x0, eps = clip
    free, uncapped = mitigate(x0, eps, 14.6, Config(alpha=alpha, max_eps_ratio=0.0), frames=7)
    limited, capped = mitigate(x0, eps, 14.6, Config(alpha=alpha, max_eps_ratio=cap), frames=7)
    assert capped.eps_ratio.item() == pytest.approx(min(cap, uncapped.eps_ratio.item()))
    assert ((limited - x0) / 14.6).norm() <= cap * eps.norm() * (1 + 1e-9)
    torch.testing.assert_close((limited - x0) * (uncapped.eps_ratio / capped.eps_ratio), free - x0)
    assert capped.alpha.item() == pytest.approx((uncapped.alpha * capped.eps_ratio / uncapped.eps_ratio).item())


def test_the_size_of_the_latent_does_not_change_the_force():
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 4, 8, 8, generator=generator, dtype=torch.float64)
    small, _ = mitigate(x0, eps, 1.0, Config(), frames=5)
    tiled, _ = mitigate(x0.repeat(1, 1, 2, 2), eps.repeat(1, 1, 2, 2), 1.0, Config(), frames=5)
    torch.testing.assert_close(tiled, small.repeat(1, 1, 2, 2))
    bare, _ = mitigate(x0.repeat(1, 1, 2, 2), eps.repeat(1, 1, 2, 2), 1.0, Config(compensate_size=False), frames=5)
    here, _ = mitigate(x0, eps, 1.0, Config(compensate_size=False), frames=5)
    torch.testing.assert_close(bare - x0.repeat(1, 1, 2, 2), (here - x0).repeat(1, 1, 2, 2) / 4)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
def test_the_number_of_frames_does_not_change_the_force_on_a_pair(kernel, bandwidth):
    """In a clip of evenly spaced frames only the ends move, each by the gradient of one pair."""
    direction = torch.randn(4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    config = Config(kernel=kernel, bandwidth=bandwidth, max_eps_ratio=0.0)
    moves = []
    for frames in (2, 8, 24, 96):
        x0 = 0.1 * torch.arange(frames, dtype=torch.float64).view(-1, 1, 1, 1) * direction
        result, _ = mitigate(x0, torch.randn_like(x0), 1.0, config, frames=frames)
        moves.append((result - x0)[0])
    for move in moves:
        torch.testing.assert_close(move, moves[2])


def test_at_the_papers_size_and_length_alpha_is_the_papers():
    assert effective_alpha(Config(), frames=24, elements=4 * 32 * 32) == 40
    assert effective_alpha(Config(), frames=16, elements=4096) == pytest.approx(30.6, abs=0.05)


def gaussian_video(frames, elements, alpha, *, seed=0, **options):
    """DDIM, 25 steps, with the exact denoiser of a Gaussian video, one frame is wrong for some steps.

    -> (the median over pairs of the mean square difference, the size of the abrupt pairs over that).
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(frames, dtype=torch.float64)
    covariance = 0.7 + 0.3 * 0.7 ** (index[:, None] - index).abs()
    values, vectors = torch.linalg.eigh(covariance)
    x = torch.randn(frames, elements, generator=generator, dtype=torch.float64)
    mistake = 0.8 * torch.randn(elements, generator=generator, dtype=torch.float64)
    alpha_bars = levels.alpha_bars()[torch.arange(960, 0, -40)].tolist()
    for now, later in zip(alpha_bars, [*alpha_bars[1:], 1.0], strict=True):
        sigma = math.sqrt((1 - now) / now)
        x0 = vectors @ ((values / (values + sigma**2))[:, None] * (vectors.T @ (x / math.sqrt(now))))
        if 0.6 < sigma < 4:
            x0[frames // 2] += mistake
        eps = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
        shape = (frames, 1, 1, elements)
        config = Config(alpha=alpha, **options)
        x0 = mitigate(x0.view(shape), eps.view(shape), sigma, config, frames=frames)[0].view(frames, elements)
        eps = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
        x = math.sqrt(later) * x0 + math.sqrt(1 - later) * eps
    squares = x.diff(dim=0).square().mean(1)
    abrupt = squares[frames // 2 - 1 : frames // 2 + 1].mean()
    return squares.median().item(), (abrupt / squares.median()).sqrt().item()


def test_on_gaussian_videos_40_smooths_and_150_freezes_without_the_cap():
    base, smooth, frozen = (gaussian_video(24, 1024, alpha, max_eps_ratio=0.0)[0] for alpha in (0, 40, 150))
    assert 0.5 < smooth / base < 0.75
    assert frozen / base < 0.1


def test_the_cap_leaves_40_alone_and_keeps_150_alive():
    capped, free = (gaussian_video(24, 1024, 40, max_eps_ratio=cap)[0] for cap in (0.5, 0.0))
    assert capped == pytest.approx(free, rel=0.02)
    assert gaussian_video(24, 1024, 150)[0] > 3 * gaussian_video(24, 1024, 150, max_eps_ratio=0.0)[0]


def test_log_with_a_tight_cap_repairs_the_abrupt_pair():
    assert gaussian_video(24, 1024, 0)[1] > 1.15
    assert gaussian_video(24, 1024, 40, kernel="log", max_eps_ratio=0.2)[1] < 1.05


def test_one_alpha_smooths_alike_for_any_frame_count_and_size():
    smoothing = {}
    for frames, elements in ((8, 1024), (16, 256), (24, 1024), (48, 2048)):
        smooth, base = (gaussian_video(frames, elements, alpha)[0] for alpha in (40, 0))
        smoothing[frames] = smooth / base
    assert max(smoothing.values()) - min(smoothing.values()) < 0.15, smoothing


@pytest.mark.parametrize(("kernel", "bandwidth", "jacobian"), COMBINATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neither_overflows_nor_drifts_on_a_large_latent(kernel, bandwidth, jacobian, dtype):
    """The sum of squares of such a difference, 3e5, exceeds the range of fp16."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 4, 160, 160, generator=generator)
    x0, eps = x0.to(dtype), eps.to(dtype)
    assert x0.diff(dim=0).square().flatten(1).float().sum(1).to(torch.float16).isinf().all()
    config = Config(kernel=kernel, bandwidth=bandwidth, jacobian=jacobian)
    result, effect = mitigate(x0, eps, 14.6, config, frames=3)
    exact, _ = mitigate(x0.float(), eps.float(), 14.6, config, frames=3)
    assert result.dtype == dtype
    assert result.isfinite().all()
    assert torch.equal(result, exact.to(dtype))
    assert effect.eps_ratio.isfinite()


def test_a_nearly_frozen_clip_in_half_precision_stays_finite():
    x0 = torch.ones(4, 4, 8, 8, dtype=torch.float16)
    x0[2] += torch.finfo(torch.float16).eps
    result, _ = mitigate(x0, torch.zeros_like(x0), 14.6, Config(max_eps_ratio=0.0), frames=4)
    assert result.isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_frames_in_the_batch_and_frames_on_their_own_axis_are_the_same_video(kernel):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 5, 4, 6, 8, generator=generator)  # v f c h w
    config = Config(kernel=kernel)
    flat, effect = mitigate(x0.flatten(0, 1), eps.flatten(0, 1), 2.0, config, frames=5)
    native, other = mitigate(x0.transpose(1, 2), eps.transpose(1, 2), 2.0, config)
    assert native.shape == (3, 4, 5, 6, 8)
    assert torch.equal(native.transpose(1, 2).flatten(0, 1), flat)
    assert effect.eps_ratio == other.eps_ratio


def test_the_videos_of_a_batch_do_not_touch_even_under_the_cap():
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 10, 4, 8, 8, generator=generator)
    x0[5:] *= 30
    config = Config(alpha=4.0, max_eps_ratio=0.1)
    both, _ = mitigate(x0, eps, 2.0, config, frames=5)
    one, _ = mitigate(x0[:5], eps[:5], 2.0, config, frames=5)
    two, _ = mitigate(x0[5:], eps[5:], 2.0, config, frames=5)
    assert torch.equal(both, torch.cat([one, two]))


@pytest.mark.parametrize("case", [{"alpha": 0.0}, {"frames": 1}, {"sigma": 0.0}])
def test_nothing_to_do_returns_the_prediction_itself(case):
    x0 = torch.randn(4, 4, 8, 8)
    config = Config(alpha=case.get("alpha", 40.0))
    result, effect = mitigate(x0, torch.randn_like(x0), case.get("sigma", 1.0), config, frames=case.get("frames", 4))
    assert result is x0
    assert effect.alpha == effect.eps_ratio == 0
    assert effect.before == effect.after


def test_beyond_the_noisiest_level_of_any_schedule_the_force_stays_finite():
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 4, 8, 8, generator=generator)
    at_edge, _ = mitigate(x0, eps, LARGEST_SIGMA, Config(), frames=4)
    for sigma in (4518.0, math.inf):
        beyond, effect = mitigate(x0, eps, sigma, Config(), frames=4)
        assert torch.equal(beyond, at_edge)
        assert effect.eps_ratio.isfinite()


@pytest.mark.parametrize("frames", [0, -4, 3, None])
def test_frames_which_do_not_divide_the_batch_are_refused(frames):
    with pytest.raises(ValueError, match="batch of 8 latents"):
        mitigate(torch.randn(8, 4, 4, 4), torch.randn(8, 4, 4, 4), 1.0, Config(), frames=frames)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": -1.0},
        {"alpha": math.nan},
        {"kernel": "gauss"},
        {"bandwidth": "mean"},
        {"jacobian": "full"},
        {"variance": 0.0},
        {"max_eps_ratio": -0.1},
        {"reference_frames": 1},
        {"reference_elements": 0},
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_the_name_of_the_field(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Config(**wrong)
