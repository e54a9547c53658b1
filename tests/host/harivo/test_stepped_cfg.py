"""Stepped CFG with real samplers, and the noise levels of Model Sampling Betas."""

from typing import Any

import pytest
import torch

from stillmotion.model_patches.harivo.stepped import SteppedScale

FRAMES = 2


@pytest.fixture
def stepped(comfy, tiny_sd):
    from stillmotion.model_patches.comfy_host.guidance.stepped import apply_stepped_cfg

    def patch(*steps, model=None):
        return apply_stepped_cfg(model or tiny_sd, SteppedScale(steps))

    return patch


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc"])
def test_one_scale_for_all_times_is_the_samplers_own_cfg(tiny_sd, stepped, run_sampler, sampler):
    result = run_sampler(stepped((0.0, 3.0)), frames=FRAMES, cfg=7.0, sampler=sampler)
    reference = run_sampler(tiny_sd, frames=FRAMES, cfg=3.0, sampler=sampler)
    assert (result - reference).abs().max() < 1e-3 * reference.abs().max()
    # with cfg 1 the sampler would omit the negative prompt
    assert torch.equal(run_sampler(stepped((0.0, 3.0)), frames=FRAMES, cfg=1.0, sampler=sampler), result)


@pytest.mark.parametrize("scheduler", ["normal", "karras"])
@pytest.mark.parametrize("steps", [6, 9])
def test_the_scale_belongs_to_the_time_not_to_the_step(tiny_sd, stepped, run_sampler, scheduler, steps):
    scales = []

    def look(args):
        levels = args["model"].model_sampling
        t = (float(levels.timestep(args["sigma"])[0]) + 1) / 1000
        guided = args["denoised"] - args["uncond_denoised"]
        direction = args["cond_denoised"] - args["uncond_denoised"]
        scales.append((t, float((guided * direction).sum() / direction.square().sum())))
        return args["denoised"]

    model = stepped((0.7, 12.5), (0.3, 9.0), (0.0, 7.5))
    model.set_model_sampler_post_cfg_function(look)
    run_sampler(model, frames=FRAMES, steps=steps, scheduler=scheduler)
    assert len(scales) == steps
    assert {round(scale, 1) for _, scale in scales} == {12.5, 9.0, 7.5}
    reference = SteppedScale(((0.7, 12.5), (0.3, 9.0), (0.0, 7.5)))
    for t, scale in scales:
        if min(abs(t - 0.7), abs(t - 0.3)) > 0.002:
            assert scale == pytest.approx(reference.at(t), rel=1e-3), t


def test_it_is_a_clone_and_a_run_leaves_nothing(tiny_sd, stepped, run_sampler):
    before = run_sampler(tiny_sd, frames=FRAMES)
    model = stepped((0.7, 12.5), (0.0, 7.5))
    first = run_sampler(model, frames=FRAMES)
    assert torch.equal(run_sampler(model, frames=FRAMES), first)
    assert not torch.equal(first, before)
    assert torch.equal(run_sampler(tiny_sd, frames=FRAMES), before)
    assert tiny_sd.model_options == {"transformer_options": {}}
    assert not [key for key in model.model_options["transformer_options"] if "stillmotion" in str(key)]


@pytest.mark.parametrize("first", ["cfg", "gradient"])
def test_it_works_with_the_mitigating_gradient_in_any_order(comfy, tiny_sd, stepped, run_sampler, first):
    from stillmotion.model_patches.comfy_host.guidance.mitigating import apply_mitigating_gradient
    from stillmotion.model_patches.harivo.mitigating import Config

    def gradient(model):
        return apply_mitigating_gradient(model, Config(), frames=FRAMES)[0]

    steps = (0.7, 12.5), (0.0, 7.5)
    both = gradient(stepped(*steps)) if first == "cfg" else stepped(*steps, model=gradient(tiny_sd))
    result = run_sampler(both, frames=FRAMES)
    assert not torch.equal(result, run_sampler(stepped(*steps), frames=FRAMES))
    assert torch.equal(result, run_sampler(gradient(stepped(*steps)), frames=FRAMES))


def test_a_cfg_function_before_it_still_works_with_its_scale(tiny_sd, stepped, run_sampler, caplog):
    """Like RescaleCFG: a function of the two predictions and the scale."""

    def half(args):
        return args["uncond"] + 0.5 * args["cond_scale"] * (args["cond"] - args["uncond"])

    crowded = tiny_sd.clone()
    crowded.set_model_sampler_cfg_function(half)
    result = run_sampler(stepped((0.0, 6.0), model=crowded), frames=FRAMES)
    assert "called with the stepped scale" in caplog.text
    expected = run_sampler(tiny_sd, frames=FRAMES, cfg=3.0)
    assert (result - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_cfg_function_behind_it_is_an_error_not_silence(stepped, run_sampler):
    model = stepped((0.7, 12.5), (0.0, 7.5))
    model.set_model_sampler_cfg_function(lambda args: args["cond"])
    with pytest.raises(RuntimeError, match="a later node set another CFG function"):
        run_sampler(model, frames=FRAMES)


def test_a_guider_without_a_negative_prompt_is_refused(comfy, stepped):
    from comfy import samplers

    guider = samplers.CFGGuider(stepped((0.7, 12.5), (0.0, 7.5)))
    guider.inner_set_conds({"positive": [[torch.randn(1, 77, 32), {}]]})
    guider.set_cfg(1.0)
    noise = torch.randn(FRAMES, 4, 8, 8)
    with pytest.raises(ValueError, match="no negative conditioning"), torch.inference_mode():
        guider.sample(noise, torch.zeros_like(noise), samplers.sampler_object("euler"), torch.tensor([5.0, 1.0, 0.0]))


def test_flow_models_have_times_too(comfy, tiny_wan, stepped):
    from stillmotion.model_patches.comfy_host.guidance.stepped import SteppedCFGPatch

    sampling = tiny_wan.get_model_object("model_sampling")
    patch = SteppedCFGPatch(SteppedScale(((0.7, 12.5), (0.0, 7.5))), None)
    threshold = sampling.percent_to_sigma(0.3)
    assert patch.at(torch.tensor([threshold + 0.01]), sampling) == 12.5
    assert patch.at(torch.tensor([threshold - 0.01]), sampling) == 7.5


def sigmas_of(model) -> torch.Tensor:
    return model.get_model_object("model_sampling").sigmas


def test_betas_of_a_node_are_those_of_the_motion_model(comfy, tiny_sd, run_sampler):
    from stillmotion.model_patches.comfy_host.base.betas import apply_betas
    from stillmotion.model_patches.core.levels import sigmas

    linear = apply_betas(tiny_sd)
    assert torch.equal(sigmas_of(linear), sigmas("linear").float())
    torch.testing.assert_close(sigmas_of(apply_betas(tiny_sd, "scaled_linear")), sigmas_of(tiny_sd))
    assert float(sigmas_of(apply_betas(tiny_sd, "linear", 0.0001, 0.02))[-1]) == pytest.approx(157.4, abs=0.5)
    still = run_sampler(tiny_sd, frames=FRAMES)
    assert not torch.equal(run_sampler(linear, frames=FRAMES), still)
    assert torch.equal(run_sampler(tiny_sd, frames=FRAMES), still)


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION"])
def test_the_kind_of_prediction_of_the_model_does_not_change(comfy, tiny_sd, kind):
    from comfy import model_sampling

    from stillmotion.model_patches.comfy_host.base.betas import apply_betas

    predicts = type("Sampling", (model_sampling.ModelSamplingDiscrete, getattr(model_sampling, kind)), {})
    base = tiny_sd.clone()
    base.add_object_patch("model_sampling", predicts(tiny_sd.model.model_config))
    assert isinstance(apply_betas(base).get_model_object("model_sampling"), getattr(model_sampling, kind))


def test_models_without_betas_and_wrong_betas_are_refused(comfy, tiny_sd, tiny_wan):
    from stillmotion.model_patches.comfy_host.base.betas import apply_betas

    with pytest.raises(ValueError, match="whose noise levels do not come from betas"):
        apply_betas(tiny_wan)
    with pytest.raises(ValueError, match="need 0 < start <= end < 1"):
        apply_betas(tiny_sd, "linear", 0.02, 0.01)


def test_the_node_takes_the_papers_values_or_a_schedule(comfy, tiny_sd):
    from stillmotion.nodes import sampling

    node: Any = sampling.SteppedCFG
    defaults = {i.id: i.default for i in node.define_schema().inputs if hasattr(i, "default")}
    assert defaults == {"early_cfg": 12.5, "late_cfg": 7.5, "switch_t": 0.7, "schedule": ""}
    plain = node.execute(tiny_sd, 12.5, 7.5, 0.7).result[0].model_options["sampler_cfg_function"]
    assert plain.scale == SteppedScale()
    written = node.execute(tiny_sd, 1, 1, 0.5, " 0.9:15, 0.7:10,0:7.5 ").result[0]
    assert written.model_options["sampler_cfg_function"].scale.steps == ((0.9, 15.0), (0.7, 10.0), (0.0, 7.5))
    with pytest.raises(ValueError, match=r"'0' is not"):
        node.execute(tiny_sd, 1, 1, 0.5, "0.7:12, 0")
