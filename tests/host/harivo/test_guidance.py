"""The mitigating gradient inside real sampling runs of ComfyUI, on a tiny model with random weights.

Such a model is not a denoiser: its frames differ far more than those of a trained model, hence the large alpha.
"""

import importlib
import logging
import math

import pytest
import torch

from stillmotion.model_patches.harivo.mitigating import Config, mitigate

STRONG = Config(alpha=20_000.0, kernel="log")


@pytest.fixture
def apply(comfy):
    from stillmotion.model_patches.comfy_host.guidance.mitigating import apply_mitigating_gradient

    return apply_mitigating_gradient


@pytest.fixture
def spied(comfy):
    """spied(model) -> (clone, list of post-CFG arguments of every call, before patches that are applied later)."""

    def spy(model):
        calls, clone = [], model.clone()

        def keep(args):
            calls.append({k: args[k].clone() for k in ("denoised", "input", "sigma")})
            return args["denoised"]

        clone.set_model_sampler_post_cfg_function(keep)
        return clone, calls

    return spy


def difference(latent):
    """Mean over pairs of the root mean square difference of adjacent frames."""
    return latent.diff(dim=0).square().flatten(1).mean(1).sqrt().mean().item()


@pytest.mark.parametrize("sampler", ["euler", "ddim", "uni_pc"])
def test_alpha_zero_is_the_model_without_it_bit_for_bit(tiny_sd, run_sampler, apply, sampler):
    patched, readout = apply(tiny_sd, Config(alpha=0.0), frames=8)
    assert torch.equal(run_sampler(patched, sampler=sampler), run_sampler(tiny_sd, sampler=sampler))
    assert {call.alpha for call in readout.records[-1].calls} == {0.0}


def test_the_ksampler_node_runs_it_and_the_model_it_came_from_is_untouched(comfy, tiny_sd, run_sampler, apply):
    comfy_nodes = importlib.import_module("nodes")  # ComfyUI's own
    before = run_sampler(tiny_sd)
    patched, readout = apply(tiny_sd, STRONG, frames=8)
    conditioning = [[torch.zeros(1, 77, 32), {}]]
    with torch.inference_mode():
        (latent,) = comfy_nodes.KSampler().sample(
            patched, 1, 3, 2.0, "euler", "normal", conditioning, conditioning, {"samples": torch.zeros(8, 4, 8, 8)}
        )
    assert len(readout.records[-1].calls) == 3
    assert readout.of(latent["samples"]) is readout.records[-1]
    assert torch.equal(run_sampler(tiny_sd), before)
    assert "sampler_post_cfg_function" not in tiny_sd.model_options


SAMPLERS = "euler euler_ancestral euler_cfg_pp heun dpm_2 lms lcm ddim uni_pc res_multistep er_sde dpmpp_2m dpmpp_sde"


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde warns of a rounded end of its interval
@pytest.mark.parametrize("sampler", [*SAMPLERS.split(), "dpmpp_2m_sde"])
def test_every_sampler_makes_frames_that_are_closer(tiny_sd, run_sampler, apply, sampler):
    patched, readout = apply(tiny_sd, STRONG, frames=8)
    plain, guided = run_sampler(tiny_sd, sampler=sampler), run_sampler(patched, sampler=sampler)
    assert guided.isfinite().all()
    assert difference(guided) < 0.97 * difference(plain)
    record = readout.records[-1]
    assert len(record.calls) >= 4
    assert all(call.after < call.before for call in record.calls)


def test_the_readout_of_a_call_equals_the_actual_values(tiny_sd, run_sampler, apply, spied):
    spy, before = spied(tiny_sd)
    patched, readout = apply(spy, Config(alpha=5000.0), frames=8)
    patched, after = spied(patched)
    run_sampler(patched, sampler="heun")
    calls = readout.records[-1].calls
    assert len(calls) == len(before) == len(after) == 7  # heun: two calls per step, one in the last
    for call, old, new in zip(calls, before, after, strict=True):
        sigma = old["sigma"][0].item()
        change = (new["denoised"] - old["denoised"]).norm() / sigma
        eps = (old["input"] - old["denoised"]) / sigma
        assert call.sigma == pytest.approx(sigma)
        assert call.eps_ratio == pytest.approx((change / eps.norm()).item(), rel=1e-3, abs=1e-6)
        assert call.before == pytest.approx(difference(old["denoised"]))
        assert call.after == pytest.approx(difference(new["denoised"]))


def test_runs_leave_nothing_for_the_next(tiny_sd, run_sampler, apply):
    patched, readout = apply(tiny_sd, STRONG, frames=4)
    first = run_sampler(patched, seed=1, steps=3)
    other = run_sampler(patched, seed=2, steps=5, size=12, frames=4, sampler="heun")
    again = run_sampler(patched, seed=1, steps=3)
    assert torch.equal(first, again)
    assert [len(record.calls) for record in readout.records] == [3, 9, 3]
    assert readout.records[0] == readout.records[2] != readout.records[1]
    assert readout.of(other) is readout.records[1]


def test_the_table_is_that_of_the_run_which_made_the_latent(tiny_sd, run_sampler, apply):
    patched, readout = apply(tiny_sd, STRONG, frames=8)
    coarse, fine = run_sampler(patched, steps=2), run_sampler(patched, steps=6)
    assert len(readout.describe(coarse).splitlines()) == 2 + 2
    assert len(readout.describe(fine).splitlines()) == 2 + 6
    assert readout.describe(coarse * 2).startswith("This latent was changed")
    assert readout.describe(coarse * 2).endswith(readout.records[-1].table())


def test_without_a_run_the_readout_says_so_and_only_the_last_runs_are_kept(tiny_sd, run_sampler, apply):
    from stillmotion.model_patches.comfy_host.guidance.mitigating import MAX_RUNS

    patched, readout = apply(tiny_sd, STRONG, frames=1)
    assert readout.describe(torch.zeros(1, 4, 8, 8)).startswith("There is no record of a run")
    for seed in range(MAX_RUNS + 3):
        run_sampler(patched, seed=seed, frames=1, steps=1)
    assert len(readout.records) == MAX_RUNS


def test_the_end_of_a_run_is_one_line_in_the_log(tiny_sd, run_sampler, apply, caplog):
    patched, _ = apply(tiny_sd, STRONG, frames=8)
    with caplog.at_level(logging.INFO, logger="stillmotion.model_patches.comfy_host.guidance.mitigating"):
        run_sampler(patched)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("stillmotion")]
    assert "\n" not in line
    assert "alpha 20000" in line
    assert "changed 4 of 4 model calls" in line


def test_a_run_that_broke_is_not_on_record_and_the_next_is_as_if_it_had_not_been(tiny_sd, run_sampler, apply):
    patched, readout = apply(tiny_sd, STRONG, frames=8)
    whole = run_sampler(patched)

    def stop(step, *_):
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sampler(patched, callback=stop)
    assert torch.equal(run_sampler(patched), whole)
    assert [len(record.calls) for record in readout.records] == [4, 4]


def test_the_videos_of_one_batch_do_not_mix(tiny_sd, run_sampler, apply):
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    patched, _ = apply(tiny_sd, STRONG, frames=4)
    both = run_sampler(patched, noise=noise)
    apart = [run_sampler(patched, noise=part, frames=4) for part in noise.split(4)]
    torch.testing.assert_close(both, torch.cat(apart), rtol=1e-3, atol=1e-3 * both.std().item())
    one_video, _ = apply(tiny_sd, STRONG, frames=8)
    assert (run_sampler(one_video, noise=noise) - both).std() > 1e-2 * both.std()


def test_it_acts_only_in_its_part_of_the_schedule(tiny_sd, run_sampler, apply):
    patched, readout = apply(tiny_sd, STRONG, frames=8, start_percent=0.3, end_percent=0.7)
    run_sampler(patched, steps=10)
    sampling = tiny_sd.get_model_object("model_sampling")
    start, end = sampling.percent_to_sigma(0.3), sampling.percent_to_sigma(0.7)
    acted = [call.alpha > 0 for call in readout.records[-1].calls]
    assert acted == [end < call.sigma <= start for call in readout.records[-1].calls]
    assert {True, False} == set(acted)
    assert "changed 4 of 10 model calls" in readout.records[-1].summary()


def test_two_patches_both_act_and_both_tell(tiny_sd, run_sampler, apply):
    once, one = apply(tiny_sd, STRONG, frames=8)
    twice, two = apply(once, Config(alpha=9_000.0, kernel="log"), frames=4)
    latent = run_sampler(twice)
    assert one.of(latent).settings != two.of(latent).settings
    assert all(call.alpha for readout in (one, two) for call in readout.of(latent).calls)
    assert difference(latent) < difference(run_sampler(once))


@pytest.mark.parametrize("batch", [7, 12])
def test_frames_which_do_not_divide_the_batch_are_refused_before_anything_is_loaded(tiny_sd, run_sampler, apply, batch):
    from comfy.patcher_extension import WrappersMP

    patched, _ = apply(tiny_sd, STRONG, frames=8)
    loads = []

    def loading(executor, *args, **kwargs):
        loads.append(1)
        return executor(*args, **kwargs)

    patched.add_wrapper(WrappersMP.PREPARE_SAMPLING, loading)
    with pytest.raises(ValueError, match=f"the batch has {batch} latents.*videos of 8 frames; set frames to"):
        run_sampler(patched, frames=batch)
    assert not loads
    run_sampler(patched, frames=16)
    assert loads


def test_one_frame_passes_through_with_a_warning(tiny_sd, run_sampler, apply, caplog):
    patched, readout = apply(tiny_sd, STRONG, frames=1)
    with caplog.at_level(logging.WARNING):
        latent = run_sampler(patched, frames=3)
    assert torch.equal(latent, run_sampler(tiny_sd, frames=3))
    assert sum("one frame" in record.getMessage() for record in caplog.records) == 1
    assert "none of them changed" in readout.records[-1].summary()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames is 0"),
        ({"frames": -3}, "frames is -3"),
        ({"frames": 8, "start_percent": 0.6, "end_percent": 0.5}, "start_percent is 0.6 and end_percent is 0.5"),
        ({"frames": 8, "end_percent": 1.5}, "end_percent is 1.5"),
    ],
)
def test_settings_which_make_no_sense_are_refused_at_once(tiny_sd, apply, options, message):
    with pytest.raises(ValueError, match=message):
        apply(tiny_sd, STRONG, **options)


def test_a_pack_of_several_latents_is_refused_by_its_shape(tiny_sd, run_sampler, apply):
    patched, _ = apply(tiny_sd, STRONG, frames=2)
    with pytest.raises(ValueError, match=r"shape \(2, 1, 512\)"):
        run_sampler(patched, latent=torch.zeros(2, 1, 512), noise=torch.zeros(2, 1, 512))


def test_a_guider_that_leaves_post_cfg_functions_out_is_an_error_at_the_first_call(comfy, tiny_sd, apply):
    from comfy import samplers

    calls = []

    class Deaf(samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            calls.append(timestep)
            return torch.zeros_like(x)

    patched, readout = apply(tiny_sd, STRONG, frames=4)
    guider = Deaf(patched)
    guider.set_conds(*[[[torch.zeros(1, 77, 32), {}]]] * 2)
    sampling = patched.get_model_object("model_sampling")
    sigmas = samplers.calculate_sigmas(sampling, "normal", 4)
    latent = torch.zeros(4, 4, 8, 8)
    with pytest.raises(RuntimeError, match="does not run post-CFG functions"), torch.inference_mode():
        guider.sample(torch.randn(4, 4, 8, 8), latent, samplers.sampler_object("euler"), sigmas, disable_pbar=True)
    assert len(calls) == 1
    assert not readout.records


@pytest.mark.parametrize("kind", ["v_prediction", "zero terminal SNR", "flow"])
def test_other_parameterisations_get_the_same_change_of_the_prediction(comfy, tiny_sd, run_sampler, apply, spied, kind):
    """The change of x_0 is that of `mitigate` at the VE level and with the noise that (x, x_0) imply."""
    from comfy_extras import nodes_model_advanced as advanced

    if kind == "flow":
        (model,) = advanced.ModelSamplingSD3().patch(tiny_sd, shift=3.0)
    else:
        (model,) = advanced.ModelSamplingDiscrete().patch(tiny_sd, "v_prediction", zsnr=kind != "v_prediction")
    spy, before = spied(model)
    config = Config(alpha=100.0, kernel="log")
    patched, readout = apply(spy, config, frames=8)
    patched, after = spied(patched)
    latent = run_sampler(patched)
    assert latent.isfinite().all()
    assert difference(latent) < difference(run_sampler(model))
    for call, old, new in zip(readout.records[-1].calls, before, after, strict=True):
        x, x0, level = old["input"].double(), old["denoised"].double(), old["sigma"][0].item()
        sigma, eps = level, (x - x0) / level
        if kind == "flow":
            sigma, eps = level / (1 - level) if level < 1 else math.inf, (x - (1 - level) * x0) / level
        expected, _ = mitigate(x0, eps, sigma, config, frames=8)
        torch.testing.assert_close(new["denoised"].double(), expected, rtol=1e-4, atol=1e-4)
        assert call.sigma == pytest.approx(sigma, rel=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc"])
def test_a_native_video_model_of_the_flow_kind_needs_no_frames(tiny_wan, run_sampler, apply, spied, sampler):
    """Wan 2.1's latents are (batch, channels, frames, height, width); two videos, five latent frames each."""
    latent = torch.zeros(2, 16, 5, 4, 6)
    spy, before = spied(tiny_wan)
    patched, readout = apply(spy, Config(alpha=200.0, kernel="log"), frames=16)
    patched, after = spied(patched)
    guided, plain = run_sampler(patched, latent=latent, sampler=sampler), run_sampler(tiny_wan, latent=latent)
    assert guided.shape == plain.shape == latent.shape
    assert guided.isfinite().all()
    assert "5 frames of 384 elements" in readout.of(guided).settings
    assert readout.of(guided).calls[0].sigma == math.inf  # a flow model starts at pure noise
    for call, old, new in zip(readout.of(guided).calls, before, after, strict=True):
        frames = [x["denoised"].transpose(1, 2) for x in (old, new)]
        assert call.after < call.before
        assert call.before == pytest.approx(sum(difference(video) for video in frames[0]) / 2, rel=1e-4)
        assert call.after == pytest.approx(sum(difference(video) for video in frames[1]) / 2, rel=1e-4)


def test_a_native_video_of_one_frame_passes_through_with_a_warning(tiny_wan, run_sampler, apply, caplog):
    patched, _ = apply(tiny_wan, STRONG, frames=16)
    latent = torch.zeros(1, 16, 1, 4, 6)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run_sampler(patched, latent=latent), run_sampler(tiny_wan, latent=latent))
    assert any("one frame" in record.getMessage() for record in caplog.records)
