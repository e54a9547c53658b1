import pytest
import torch

from stillmotion.model_patches.core import levels


def test_one_noisy_latent_in_three_coordinates_has_one_level():
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    alpha_bar = torch.tensor(0.3, dtype=torch.float64)
    vp = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    sigma = levels.sigma_from_alpha_bar(alpha_bar)
    torch.testing.assert_close(vp / alpha_bar.sqrt(), x0 + sigma * eps)
    time = levels.flow_from_sigma(sigma)
    torch.testing.assert_close(((1 - time) * x0 + time * eps) / (1 - time), x0 + sigma * eps)


def test_conversions_are_inverse_to_each_other():
    sigma = torch.logspace(-3, 3, 40, dtype=torch.float64)
    torch.testing.assert_close(levels.sigma_from_alpha_bar(levels.alpha_bar_from_sigma(sigma)), sigma)
    torch.testing.assert_close(levels.sigma_from_flow(levels.flow_from_sigma(sigma)), sigma)
    assert levels.sigma_from_flow(torch.ones(1)).isinf().all()
    assert levels.sigma_from_alpha_bar(torch.zeros(1)).isinf().all()


@pytest.mark.parametrize(("schedule", "largest"), [("scaled_linear", 14.6146), ("linear", 25.1461)])
def test_both_schedules_end_where_stable_diffusion_and_animatediff_do(schedule, largest):
    sigmas = levels.sigmas(schedule)
    assert sigmas.shape == (1000,)
    assert sigmas[-1].item() == pytest.approx(largest, abs=1e-3)
    assert sigmas[0].item() == pytest.approx(0.0292, abs=1e-4)
    assert (sigmas.diff() > 0).all()


@pytest.mark.parametrize("schedule", levels.SCHEDULES)
def test_the_schedules_are_those_of_diffusers(schedule):
    schedulers = pytest.importorskip("diffusers.schedulers")
    scheduler = schedulers.DDIMScheduler(beta_schedule=schedule, beta_start=0.00085, beta_end=0.012)
    torch.testing.assert_close(levels.alpha_bars(schedule).float(), scheduler.alphas_cumprod, rtol=2e-5, atol=0)


@pytest.mark.parametrize("wrong", [{"schedule": "cosine"}, {"start": 0.0}, {"start": 0.02}, {"end": 1.0}])
def test_an_impossible_schedule_is_refused_with_its_values(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        levels.betas(**wrong)
