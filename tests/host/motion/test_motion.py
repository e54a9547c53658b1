"""The motion model on a real ComfyUI MODEL, sampled by ComfyUI's own sampler."""

import logging
from typing import Any

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.slots import Slot
from stillmotion.model_patches.core.temporal import MotionModel

FRAMES = 4
SIZES = {"block_channels": (32, 64), "layers_per_block": 1, "heads": 4, "max_frames": 8}  # of conftest's tiny_sd
CONTEXT = 32


def random_motion(seed=1, *, scale=0.1, **sizes):
    """A motion model with weights as after training; with scale 0, an untrained one with zero output projections."""
    torch.manual_seed(seed)
    motion = MotionModel(MotionConfig(**SIZES | sizes))
    with torch.no_grad():
        for parameter in motion.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return motion


@pytest.fixture
def motion_file(weight_file):
    """motion_file(seed=1, scale=0.1, dtype=..., **sizes) -> the path of a StillMotion file."""

    def write(seed=1, *, scale=0.1, dtype=torch.float32, **sizes):
        return weight_file("motion", random_motion(seed, scale=scale, **sizes), dtype)

    return write


@pytest.fixture
def sample(comfy):
    """sample(model, positive, negative, noise, ...) with given conditions."""
    from comfy import sample as sampling

    def run(model, positive, negative, noise, *, steps=3, cfg=2.0, **options):
        with torch.inference_mode():
            latent = torch.zeros_like(noise)
            arguments = (model, noise, steps, cfg, "euler", "normal", positive, negative, latent)
            return sampling.sample(*arguments, seed=0, disable_pbar=True, **options)

    return run


def conditioning(seed, tokens=77, **options):
    return [[torch.randn(1, tokens, CONTEXT, generator=torch.Generator().manual_seed(seed)), options]]


def noise_of(frames, seed=5, height=8, width=8):
    return torch.randn(frames, 4, height, width, generator=torch.Generator().manual_seed(seed))


def close(a, b, share=1e-4):
    """Equal up to a relative error, because random networks have no natural scale."""
    return bool((a - b).abs().max() <= share * b.abs().max())


@pytest.mark.parametrize("mid_block", [False, True])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ddim"])
def test_a_fresh_motion_model_changes_no_bit(tiny_sd, patched, run_sampler, sampler, mid_block):
    with_fresh = patched(scale=0.0, mid_block=mid_block)
    assert torch.equal(
        run_sampler(with_fresh, frames=FRAMES, sampler=sampler), run_sampler(tiny_sd, frames=FRAMES, sampler=sampler)
    )


def test_runs_leave_nothing_behind(tiny_sd, patched, run_sampler):
    """Runs A, B, A give A's result twice; the plain model, its keys and its options stay unchanged."""
    keys = list(tiny_sd.model.state_dict())
    before = run_sampler(tiny_sd, frames=FRAMES)
    a, b = patched(seed=1), patched(seed=2)
    first, second, again = (run_sampler(model, frames=FRAMES) for model in (a, b, a))
    assert torch.equal(first, again)
    assert not close(first, second, 0.01)
    assert not close(first, before, 0.01)
    assert torch.equal(run_sampler(tiny_sd, frames=FRAMES), before)
    assert list(tiny_sd.model.state_dict()) == keys
    assert tiny_sd.model_options == {"transformer_options": {}}
    assert not [key for key in a.model_options["transformer_options"] if "stillmotion" in str(key)]


def test_the_middle_module_is_used(patched, run_sampler):
    """The same weights with and without those of the middle block differ."""
    motion = random_motion(mid_block=True)
    silent = {k: torch.zeros_like(v) if k.startswith("mid_block") else v for k, v in motion.state_dict().items()}
    assert not close(with_weights(patched, run_sampler, motion, silent), with_weights(patched, run_sampler, motion))


def with_weights(patched, run_sampler, motion, weights=None):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        checkpoint.save(path, system="motion", config=motion.config.to_dict(), weights=weights or motion.state_dict())
        return run_sampler(patched(file=path), frames=FRAMES)


def test_several_videos_in_one_batch_equal_separate_runs(patched, run_sampler):
    model, noise = patched(), noise_of(3 * FRAMES)
    together = run_sampler(model, latent=torch.zeros_like(noise), noise=noise)
    for clip in torch.arange(3 * FRAMES).chunk(3):
        alone = run_sampler(model, latent=torch.zeros_like(noise[clip]), noise=noise[clip])
        assert close(together[clip], alone)


def test_frames_of_one_video_do_see_each_other(patched, run_sampler):
    model, noise = patched(), noise_of(FRAMES)
    one = run_sampler(model, latent=torch.zeros_like(noise), noise=noise)
    other = noise.clone()
    other[0] = noise_of(1, seed=9)[0]
    changed = run_sampler(model, latent=torch.zeros_like(noise), noise=other)
    assert not close(one[1:], changed[1:], 0.01)


def test_conditions_together_or_one_after_another_give_the_same(patched, run_sampler):
    calls = {}
    results = {}
    for name, memory in (("together", 0), ("apart", 1e30)):
        model = patched()
        model.add_object_patch("memory_required", lambda *a, memory=memory, **k: memory)
        calls[name] = chunks_of(model)
        results[name] = run_sampler(model, frames=FRAMES)
    assert set(calls["together"]) == {2}
    assert set(calls["apart"]) == {1}
    assert close(results["together"], results["apart"])


def chunks_of(model):
    """A list of the number of conditions in each call of the U-Net."""
    from comfy.patcher_extension import WrappersMP

    counts = []

    def look(executor, *args, **kwargs):
        counts.append(len(args[5]["cond_or_uncond"]))
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", look)
    return counts


@pytest.mark.parametrize(("height", "width"), [(7, 9), (3, 5), (10, 8)])
def test_odd_sizes(tiny_sd, patched, run_sampler, height, width):
    latent = torch.zeros(FRAMES, 4, height, width)
    moving, still = run_sampler(patched(), latent=latent), run_sampler(tiny_sd, latent=latent)
    assert moving.shape == still.shape
    assert not close(moving, still, 0.01)
    assert torch.equal(run_sampler(patched(scale=0.0), latent=latent), still)


def test_areas_time_ranges_and_prompts_of_different_lengths(tiny_sd, patched, sample):
    """Calls of the U-Net with other sizes and other numbers of conditions within one run."""
    area = conditioning(2, area=(4, 8, 0, 0), strength=1.0)
    early = conditioning(3, start_percent=0.0, end_percent=0.5)
    positive, negative = conditioning(1) + area + early, conditioning(4, tokens=81)
    noise = noise_of(FRAMES)
    still = sample(tiny_sd, positive, negative, noise)
    assert torch.equal(sample(patched(scale=0.0), positive, negative, noise), still)
    assert not close(sample(patched(), positive, negative, noise), still, 0.01)


@pytest.mark.slow
def test_strength_scales_what_is_added(tiny_sd, patched, run_sampler):
    still = run_sampler(tiny_sd, frames=FRAMES, steps=1, cfg=1.0)
    assert torch.equal(run_sampler(patched(options={"strength": 0.0}), frames=FRAMES, steps=1, cfg=1.0), still)
    change = [
        run_sampler(patched(options={"strength": s}), frames=FRAMES, steps=1, cfg=1.0) - still for s in (1e-3, 2e-3)
    ]
    assert close(2 * change[0], change[1], 0.02)  # to first order
    assert change[0].abs().max() > 0


@pytest.mark.slow
def test_start_and_end_bound_the_steps(tiny_sd, patched, run_sampler):
    """With an end in the middle, the first 2 of 4 steps use the motion model and the last 2 do not."""

    def run(model, **options):
        return run_sampler(model, frames=FRAMES, steps=4, **options)

    still, moving = tiny_sd, patched()
    middle = run(moving, last_step=2, force_full_denoise=False)
    split = run(still, start_step=2, noise=torch.zeros_like(middle), latent=middle)
    assert close(run(patched(options={"end_percent": 0.5})), split)
    middle = run(still, last_step=2, force_full_denoise=False)
    split = run(moving, start_step=2, noise=torch.zeros_like(middle), latent=middle)
    assert close(run(patched(options={"start_percent": 0.5})), split)
    assert torch.equal(run(patched(options={"start_percent": 0.999, "end_percent": 0.9995})), run(still))
    assert not close(run(still), run(moving), 0.01)


@pytest.mark.slow
def test_two_motion_models_add_up(patched, run_sampler):
    one, other = patched(seed=1), patched(seed=2)
    both = patched(seed=2, model=one)
    results = [run_sampler(model, frames=FRAMES) for model in (one, other, both)]
    assert not close(results[2], results[0], 0.01)
    assert not close(results[2], results[1], 0.01)
    assert torch.equal(run_sampler(patched(scale=0.0, model=one), frames=FRAMES), results[0])
    assert torch.equal(run_sampler(both.clone().clone(), frames=FRAMES), results[2])


def test_the_same_motion_model_twice(comfy, tiny_sd, motion_file, run_sampler):
    """Two uses of one file at half strength each are not one use at full strength."""
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    motion = load_motion(motion_file())
    once = apply_motion(tiny_sd, motion, frames=FRAMES, strength=0.5)
    twice = apply_motion(once, motion, frames=FRAMES, strength=0.5)
    first = run_sampler(once, frames=FRAMES)
    assert not close(run_sampler(twice, frames=FRAMES), first, 0.01)
    assert torch.equal(run_sampler(once, frames=FRAMES), first)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 0.02), (torch.bfloat16, 0.2)])
def test_half_precision_files(comfy, patched, run_sampler, motion_file, dtype, share):
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    path = motion_file(dtype=dtype)
    assert load_motion(path).patcher.model_dtype() == dtype
    half, full = run_sampler(patched(file=path), frames=FRAMES), run_sampler(patched(), frames=FRAMES)
    assert half.isfinite().all()
    assert close(half, full, share)
    assert not torch.equal(half, full)


def test_weights_that_stay_in_main_memory_give_the_same(patched, run_sampler):
    """ComfyUI's low-VRAM mode: weights are cast for each call instead of loaded."""
    from comfy.patcher_extension import CallbacksMP

    model = patched()
    result = run_sampler(model, frames=FRAMES)
    cast = []

    def unload(patcher):
        for each in (patcher, *patcher.get_nested_additional_models()):
            each.partially_unload(torch.device("cpu"), 1e12)
            cast.append(sum(getattr(m, "comfy_patched_weights", None) is False for m in each.model.modules()))

    model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, "test", unload)
    assert torch.equal(run_sampler(model, frames=FRAMES), result)
    assert min(cast) > 0


def test_it_can_be_built_under_dynamic_memory(comfy, motion_file, monkeypatch):
    """ComfyUI's layers have no weights there until a complete state dict is loaded."""
    import comfy.memory_management

    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    path = motion_file(mid_block=True)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    motion: Any = load_motion(path).patcher.model
    reference = random_motion(mid_block=True).state_dict()
    state = motion.state_dict()
    assert set(state) == set(reference)
    assert all(torch.equal(state[key], reference[key]) for key in reference)
    x = torch.randn(FRAMES, 32, 4, 4)
    slot = Slot("down", 0, 0)
    expected = random_motion(mid_block=True).module(slot)(x, FRAMES)
    torch.testing.assert_close(motion.module(slot)(x, FRAMES), expected)


def test_the_factory_gives_a_second_copy(comfy, motion_file):
    """For several GPUs, and for LoRA hooks under dynamic memory."""
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    patcher: Any = load_motion(motion_file()).patcher
    factory, arguments = patcher.cached_patcher_init
    copy = factory(*arguments, disable_dynamic=True)
    assert copy.model is not patcher.model
    assert all(torch.equal(a, b) for a, b in zip(copy.model.parameters(), patcher.model.parameters(), strict=True))


class Stop(Exception):
    pass


def test_an_exception_in_the_middle_leaves_no_trace(tiny_sd, patched, run_sampler):
    model = patched()
    before = run_sampler(tiny_sd, frames=FRAMES), run_sampler(model, frames=FRAMES)

    def stop(step, *_):
        if step == 1:
            raise Stop

    with pytest.raises(Stop):
        run_sampler(model, frames=FRAMES, callback=stop)
    assert torch.equal(run_sampler(tiny_sd, frames=FRAMES), before[0])
    assert torch.equal(run_sampler(model, frames=FRAMES), before[1])


@pytest.mark.slow
def test_a_lora_and_a_controlnet_work_with_it(comfy, tiny_sd, patched, sample):
    from comfy import sd

    lora, hint = random_lora(tiny_sd), torch.rand(FRAMES, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with_lora, _ = sd.load_lora_for_models(tiny_sd, None, lora, 1.0, 0.0)
    noise, motion = noise_of(FRAMES), patched()
    control = {"control": random_controlnet().set_cond_hint(hint), "control_apply_to_uncond": True}
    results = {}
    for lora_on, control_on, motion_on in ((0, 0, 1), (1, 0, 0), (1, 0, 1), (0, 1, 0), (0, 1, 1), (1, 1, 1)):
        base = with_lora if lora_on else tiny_sd
        model = patched(model=base) if motion_on else base
        positive = conditioning(1, **control) if control_on else conditioning(1)
        results[lora_on, control_on, motion_on] = sample(model, positive, conditioning(2), noise)
    values = list(results.values())
    assert not any(close(a, b, 0.01) for i, a in enumerate(values) for b in values[:i])
    # a LoRA that is applied afterwards has the same effect, and all of its keys match
    later: Any
    later, _ = sd.load_lora_for_models(motion, None, lora, 1.0, 0.0)
    assert len(later.patches) == len(lora) // 2
    assert torch.equal(sample(later, conditioning(1), conditioning(2), noise), results[1, 0, 1])


def random_lora(model, rank=2):
    """A LoRA on every attention matrix of the U-Net."""
    generator, lora = torch.Generator().manual_seed(4), {}
    for key, weight in model.model.diffusion_model.state_dict().items():
        if key.endswith("weight") and weight.ndim == 2 and ".attn" in key:
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            lora[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], rank, generator=generator) * 0.5
            lora[f"{name}.lora_down.weight"] = torch.randn(rank, weight.shape[1], generator=generator) * 0.5
    assert lora
    return lora


def random_controlnet():
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops
    from comfy import model_management

    sizes = {"image_size": 32, "in_channels": 4, "hint_channels": 3, "model_channels": 32, "channel_mult": (1, 2)}
    depth = {"num_res_blocks": [1, 1], "transformer_depth": [0, 1], "transformer_depth_middle": 1, "num_heads": 2}
    attention = {"use_spatial_transformer": True, "context_dim": CONTEXT, "legacy": False}
    net = comfy.cldm.cldm.ControlNet(**sizes, **depth, **attention, operations=comfy.ops.manual_cast)
    generator = torch.Generator().manual_seed(6)
    for name, weight in net.named_parameters():
        fan = weight[0].numel()
        random = torch.randn(weight.shape, generator=generator) / fan**0.5
        weight.data = random if weight.ndim > 1 else torch.full(weight.shape, float(not name.endswith("bias")))
    return comfy.controlnet.ControlNet(net, load_device=model_management.get_torch_device())


@pytest.mark.slow
def test_context_windows_are_the_clips(comfy, tiny_sd, patched, run_sampler, windowed):
    """With windows of 4 on 4 frames nothing changes; on 10 frames each window is a clip."""
    one = run_sampler(patched(), frames=FRAMES)
    assert torch.equal(run_sampler(windowed(patched(), 4), frames=FRAMES), one)
    still = run_sampler(windowed(tiny_sd, 4), frames=10)
    assert torch.equal(run_sampler(windowed(patched(frames=10, scale=0.0), 4), frames=10), still)
    assert not close(run_sampler(windowed(patched(frames=10), 4), frames=10), still, 0.01)
    assert run_sampler(windowed(patched(frames=10), 4, causal_window_fix=True), frames=10).isfinite().all()


def test_windows_that_do_not_fit_are_named(patched, run_sampler, windowed):
    with pytest.raises(ValueError, match=r"slide over the whole batch of 12 images, but frames is 4; set frames to 12"):
        run_sampler(windowed(patched(frames=4), 4), frames=12)
    with pytest.raises(ValueError, match=r"a context window has 9 frames.*at most 8"):
        run_sampler(windowed(patched(frames=12), 9), frames=12)
    with pytest.raises(ValueError, match=r"8 frames and an anchor frame.*switch causal_window_fix off"):
        run_sampler(windowed(patched(frames=12), 8, causal_window_fix=True), frames=12)


@pytest.mark.parametrize(
    ("frames", "batch", "message"),
    [
        (4, 6, "a batch of 6 images cannot be divided into clips of 4 frames; make the batch a multiple of 4"),
        (16, 16, "a clip has 16 frames, but this motion model knows positions for only 8"),
    ],
)
def test_a_batch_that_is_not_whole_clips_is_refused_before_anything_is_loaded(
    patched, run_sampler, frames, batch, message
):
    from comfy import model_management

    model = patched(frames=frames)
    loaded = list(model_management.current_loaded_models)
    with pytest.raises(ValueError, match=message):
        run_sampler(model, frames=batch)
    assert model_management.current_loaded_models == loaded


def test_no_frames_are_refused_and_one_passes_through(tiny_sd, patched, run_sampler, caplog):
    with pytest.raises(ValueError, match="frames is 0; give the number of frames"):
        patched(frames=0)
    with caplog.at_level(logging.WARNING):
        single = patched(frames=1)
    assert "a clip of 1 frame has no motion" in caplog.text
    assert torch.equal(run_sampler(single, frames=3), run_sampler(tiny_sd, frames=3))


def test_a_handler_of_somebody_else_is_warned_of_and_an_unused_motion_model_is_an_error(
    comfy, tiny_sd, patched, run_sampler, caplog
):
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    def handler(layer, x, emb, *_):
        return layer(x, emb)

    def their_attention(layer, x, emb, context, options, *_):
        return layer(x, context, options)

    crowded = tiny_sd.clone()
    crowded.set_model_forward_timestep_embed_patch((ResBlock, handler))
    crowded.set_model_forward_timestep_embed_patch((SpatialTransformer, their_attention))
    with caplog.at_level(logging.WARNING):
        model = patched(model=crowded)
    assert "handler already handles the ResBlock layers" in caplog.text
    with pytest.raises(RuntimeError, match=r"6 of its 6 modules were never run \(first: down block 0, layer 0\)"):
        run_sampler(model, frames=FRAMES)


def test_a_patch_that_replaces_the_unet_is_an_error(tiny_sd, patched, run_sampler):
    model = patched()
    model.set_model_unet_function_wrapper(lambda apply, arguments: torch.zeros_like(arguments["input"]))
    with pytest.raises(RuntimeError, match="modules were never run"):
        run_sampler(model, frames=FRAMES)


def test_other_bases_are_refused_by_name(comfy, tiny_wan, patched, motion_file):
    with pytest.raises(ValueError, match="this MODEL is WAN21_T2V, whose network is a WanModel"):
        patched(model=tiny_wan)
    wide = motion_file(block_channels=(32, 96))
    with pytest.raises(
        ValueError,
        match=r"built for a U-Net with channels 32, 96 and 1 layers.*this MODEL is SD15 with channels 32, 64",
    ):
        patched(file=wide)
    with pytest.raises(ValueError, match=r"channels 32, 64 and 2 layers in its down blocks, but this MODEL"):
        patched(file=motion_file(layers_per_block=2))


def test_sdxl_and_svd_are_refused_by_name(comfy, motion_file, patched):
    from comfy import model_patcher, supported_models

    cpu = torch.device("cpu")

    def on_meta(family):
        family.set_inference_dtype(torch.float32, None)
        model = family.get_model({}, "", device=torch.device("meta"))
        return model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)

    shared = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_head_channels": 64}
    shared |= {"use_spatial_transformer": True, "use_linear_in_transformer": True, "legacy": False, "dims": 2}
    sdxl = {"num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10], "channel_mult": [1, 2, 4]}
    sdxl |= {"transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10]}
    sdxl |= {"context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential", "use_temporal_attention": False}
    with pytest.raises(ValueError, match=r"this MODEL is SDXL with channels 320, 640, 1280 and 2 layers"):
        patched(model=on_meta(supported_models.SDXL({**shared, **sdxl})), file=motion_file())
    svd = {"num_res_blocks": [1, 1], "transformer_depth": [1, 1], "channel_mult": [1, 2], "context_dim": 1024}
    svd |= {"extra_ff_mix_layer": True, "video_kernel_size": [3, 1, 1], "merge_strategy": "learned_with_images"}
    svd |= {"transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1], "adm_in_channels": 768}
    svd |= {
        "num_classes": "sequential",
        "use_temporal_attention": True,
        "use_temporal_resblock": True,
        "in_channels": 8,
    }
    with pytest.raises(ValueError, match="this MODEL is SVD_img2vid, which already has temporal layers"):
        patched(model=on_meta(supported_models.SVD_img2vid({**shared, **svd})), file=motion_file())


LINEAR_FILE = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.slow
def test_the_noise_levels_come_from_the_file_or_as_chosen(tiny_sd, patched):
    def largest(model):
        return float(model.get_model_object("model_sampling").sigma_max)

    model_level = largest(tiny_sd)
    assert model_level == pytest.approx(14.61, abs=0.01)
    assert largest(patched()) == model_level
    assert largest(patched(**LINEAR_FILE)) == pytest.approx(25.08, abs=0.1)
    assert largest(patched(**LINEAR_FILE, options={"beta_schedule": "model"})) == model_level
    assert largest(patched(**LINEAR_FILE, options={"beta_schedule": "scaled_linear"})) == pytest.approx(model_level)
    assert largest(patched(options={"beta_schedule": "linear"})) == pytest.approx(25.08, abs=0.1)


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION"])
def test_the_kind_of_prediction_of_the_base_does_not_change(comfy, tiny_sd, patched, kind):
    from comfy import model_sampling

    predicts = type("Sampling", (model_sampling.ModelSamplingDiscrete, getattr(model_sampling, kind)), {})
    base = tiny_sd.clone()
    base.add_object_patch("model_sampling", predicts(tiny_sd.model.model_config, zsnr=kind == "V_PREDICTION"))
    changed = patched(model=base, options={"beta_schedule": "linear"}).get_model_object("model_sampling")
    assert isinstance(changed, getattr(model_sampling, kind))
    assert changed.sigma_min == pytest.approx(0.0292, abs=1e-3)
    assert (float(changed.sigma_max) > 1000) is (kind == "V_PREDICTION")  # no signal remains at the end, as in the base


def test_a_base_without_a_table_of_levels_is_refused_unless_it_keeps_its_levels(comfy, tiny_sd, patched):
    from comfy import model_sampling

    class Sampling(model_sampling.ModelSamplingContinuousEDM, model_sampling.EPS):
        pass

    base = tiny_sd.clone()
    base.add_object_patch("model_sampling", Sampling(tiny_sd.model.model_config))
    with pytest.raises(
        ValueError, match=r"'linear' cannot replace the Sampling of this MODEL.*beta_schedule to 'model'"
    ):
        patched(model=base, options={"beta_schedule": "linear"})
    assert patched(model=base, options={"beta_schedule": "model"}).get_model_object("model_sampling").sigma_max > 0


@torch.no_grad()
def test_both_hosts_give_the_same_eps(tiny_sd, patched, motion_file, network_output):
    """One file in ComfyUI's U-Net and in diffusers': the strongest test of the slots."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from stillmotion.model_patches.diffusers_host.motion import attach
    from stillmotion.model_patches.ldm_names import rename, unet_prefixes

    path = motion_file(mid_block=True)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=CONTEXT,
        attention_head_dim=8,  # in spite of diffusers' name: the number of heads, which is 8 in ComfyUI's SD15
        sample_size=8,
    ).eval()
    weights = tiny_sd.model.diffusion_model.state_dict()
    unet.load_state_dict(rename(weights, unet_prefixes(2, 1, (False, True))))
    file = checkpoint.load(path)
    motion = MotionModel(MotionConfig.from_dict(file.config))
    motion.load_state_dict(file.weights)
    x, t = noise_of(2 * FRAMES, height=6, width=10), torch.full((2 * FRAMES,), 300)
    context = conditioning(1)[0][0].repeat(2 * FRAMES, 1, 1)
    handle = attach(unet, motion)
    handle.frames = FRAMES
    reference = unet(x, t, context).sample
    handle.remove()
    still = unet(x, t, context).sample
    output = network_output(patched(file=path), x, t, context)
    assert (output - reference).abs().max() < 1e-4
    assert (still - reference).abs().max() > 0.01
