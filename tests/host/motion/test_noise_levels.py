"""The noise levels of a motion model's training are those of the run, whichever node comes first."""

import logging
from typing import Any

import pytest
import torch

from .test_motion import FRAMES, LINEAR_FILE, motion_file  # noqa: F401  the fixture of the files

SCHEDULERS = ("sgm_uniform", "normal", "simple", "karras", "ddim_uniform", "beta", "exponential")


@pytest.fixture
def discrete(comfy):
    """discrete(model, sampling, zsnr) -> ComfyUI's node ModelSamplingDiscrete."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    def patch(model, sampling="lcm", zsnr=False) -> Any:
        return ModelSamplingDiscrete().patch(model, sampling, zsnr)[0]

    return patch


def levels(model) -> Any:
    return model.get_model_object("model_sampling").sigmas


def test_lcm_gets_every_20th_of_the_motion_models_levels(tiny_sd, patched, discrete):
    from stillmotion.model_patches.core.levels import sigmas

    lcm_levels = levels(patched(model=discrete(tiny_sd), **LINEAR_FILE))
    assert len(lcm_levels) == 50
    torch.testing.assert_close(lcm_levels.double(), sigmas("linear")[19::20], rtol=1e-5, atol=0)
    assert float(lcm_levels[-1]) == pytest.approx(25.15, abs=0.01)


def test_model_sampling_betas_takes_lcm_too(tiny_sd, discrete):
    from stillmotion.model_patches.comfy_host.base.betas import apply_betas

    changed = apply_betas(discrete(tiny_sd), "linear")
    assert type(changed.get_model_object("model_sampling")).__name__ == "ModelSamplingAdvanced"
    assert float(levels(changed)[-1]) == pytest.approx(25.15, abs=0.01)


def test_lcm_without_a_signal_at_the_end_keeps_it_so(tiny_sd, patched, discrete):
    assert float(levels(patched(model=discrete(tiny_sd, zsnr=True), **LINEAR_FILE))[-1]) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_lcm_before_and_after_the_motion_model_gives_the_same_frames(
    tiny_sd, patched, discrete, run_sampler, scheduler, denoise
):
    run = {"frames": FRAMES, "sampler": "lcm", "scheduler": scheduler, "steps": 8, "denoise": denoise}
    before = run_sampler(patched(model=discrete(tiny_sd), **LINEAR_FILE), **run)
    behind = discrete(patched(**LINEAR_FILE))
    assert torch.equal(run_sampler(behind, **run), before)
    assert float(levels(behind)[-1]) == pytest.approx(14.61, abs=0.01)  # the user's own MODEL is not changed


@pytest.mark.slow
def test_a_part_of_a_schedule_and_levels_typed_by_hand_are_the_same_in_both_orders(
    tiny_sd, patched, discrete, run_sampler
):
    part = {"frames": FRAMES, "sampler": "lcm", "scheduler": "karras", "steps": 6, "start_step": 2, "last_step": 4}
    typed = {"frames": FRAMES, "sampler": "lcm", "sigmas": torch.tensor([9.0, 3.0, 1.0, 0.0])}
    for run in (part, part | {"force_full_denoise": True}, typed):
        before = run_sampler(patched(model=discrete(tiny_sd), **LINEAR_FILE), **run)
        assert torch.equal(run_sampler(discrete(patched(**LINEAR_FILE)), **run), before)


@pytest.mark.parametrize("sampling", ["v_prediction", "x0"])
def test_other_levels_after_the_motion_model_are_warned_of_with_the_node_and_both_numbers(
    tiny_sd, patched, discrete, run_sampler, caplog, sampling
):
    with caplog.at_level(logging.WARNING):
        run_sampler(discrete(patched(**LINEAR_FILE), sampling), frames=FRAMES, steps=1)
    assert "trained with linear betas, whose largest noise level (sigma_max) is 25.1" in caplog.text
    assert "samples with one of 14.6, because the node ModelSamplingDiscrete after Apply Motion Model" in caplog.text
    assert "move that node before Apply Motion Model, or set beta_schedule to 'model'" in caplog.text


def test_levels_that_differ_only_below_the_largest_are_warned_of(tiny_sd, patched, discrete, run_sampler, caplog):
    """Without a signal at the end, every schedule has the same largest level."""
    with caplog.at_level(logging.WARNING):
        run_sampler(discrete(patched(**LINEAR_FILE), "eps", True), frames=FRAMES, steps=1)
    assert "noise level (sigma) of timestep 500 is 2.5, but this MODEL samples with one of 1.8" in caplog.text


def test_our_own_betas_after_the_motion_model_are_warned_of(tiny_sd, patched, run_sampler, caplog):
    from stillmotion.model_patches.comfy_host.base.betas import apply_betas

    with caplog.at_level(logging.WARNING):
        run_sampler(apply_betas(patched(**LINEAR_FILE), "scaled_linear"), frames=FRAMES, steps=1)
    assert "a node, such as Model Sampling Betas, after Apply Motion Model" in caplog.text


def test_levels_that_are_right_or_free_are_not_warned_of(tiny_sd, patched, discrete, run_sampler, caplog):
    from comfy_extras.nodes_model_advanced import RescaleCFG

    rescaled: Any = RescaleCFG().patch(patched(**LINEAR_FILE), 0.7)[0]
    unchanged = discrete(patched(**LINEAR_FILE, options={"beta_schedule": "model"}), "v_prediction")
    first = patched(model=discrete(tiny_sd, "v_prediction", True), **LINEAR_FILE)
    with caplog.at_level(logging.WARNING):
        for model in (rescaled, unchanged, first, discrete(patched(), "eps")):
            run_sampler(model, frames=FRAMES, steps=1)
    assert "sigma_max" not in caplog.text
