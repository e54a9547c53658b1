"""HARIVO on a real ComfyUI MODEL: each part alone, disabled, combined with other patches, equal to diffusers."""

from itertools import product
from typing import Any

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.harivo.config import HarivoConfig, MappingConfig, TokenConfig
from stillmotion.model_patches.harivo.model import HarivoModel
from stillmotion.training.plans.common import POCKET

FRAMES, CONTEXT = 4, 32
PARTS = ("strength", "mapping", "tokens")
OFF = dict.fromkeys(PARTS, 0.0)
SIZES: dict[str, Any] = {
    "block_channels": (32, 64),
    "layers_per_block": 1,
    "heads": 4,
    "max_frames": 8,
}  # of conftest's tiny_sd


def trained(scale=0.1, **changes) -> Any:
    """A model with weights as after training; with scale 0, an untrained one."""
    torch.manual_seed(1)
    config: dict[str, Any] = {
        "motion": MotionConfig(**SIZES),
        "mapping": MappingConfig(width=16, heads=4, max_frames=8),
        "tokens": TokenConfig(context_dim=CONTEXT, frames=6),
    }
    model = HarivoModel(HarivoConfig(**config | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


@pytest.fixture
def harivo_file(tmp_path):
    def write(model=None, dtype=torch.float32, **changes):
        model = model or trained(**changes)
        path = tmp_path / f"harivo_{len(list(tmp_path.iterdir()))}.safetensors"
        weights = {k: v.to(dtype) for k, v in model.state_dict().items()}
        checkpoint.save(path, system="harivo", config=model.config.to_dict(), weights=weights)
        return path

    return write


@pytest.fixture
def patched(comfy, tiny_sd, harivo_file):
    """patched(model=tiny_sd, file=..., frames=4, options=..., **of trained) -> a MODEL with HARIVO."""
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    def patch(*, model=None, file=None, frames=FRAMES, options=None, **changes):
        motion = load_motion(file or harivo_file(**changes))
        return apply_motion(model or tiny_sd, motion, frames=frames, **options or {})

    return patch


@pytest.fixture
def sample(comfy):
    """sample(model, positive, negative, ...) with given conditions."""
    from comfy import sample as sampling

    def run(model, positive, negative, noise=None, *, steps=2, cfg=2.0, **options):
        noise = noise_of(FRAMES) if noise is None else noise
        with torch.inference_mode():
            latent = torch.zeros_like(noise)
            arguments = (model, noise, steps, cfg, "euler", "normal", positive, negative, latent)
            return sampling.sample(*arguments, seed=0, disable_pbar=True, **options)

    return run


def conditioning(seed, tokens=77, rows=1, **options):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(rows, tokens, CONTEXT, generator=generator), options]]


def noise_of(frames, seed=5, size=8):
    return torch.randn(frames, 4, size, size, generator=torch.Generator().manual_seed(seed))


def close(a, b, share=1e-4):
    return bool((a - b).abs().max() <= share * b.abs().max())


def counted(model):
    """A list with an entry for every call of the token generator."""
    from stillmotion.model_patches.comfy_host.motion.apply import KEY

    calls = []
    for patcher in model.get_additional_models_with_key(KEY):
        patcher.model.tokens.register_forward_hook(lambda _m, args, _o: calls.append(tuple(args[0].shape)))
    return calls


@pytest.mark.slow
def test_switched_off_it_is_the_plain_model_bit_for_bit_and_the_base_is_never_changed(tiny_sd, patched, run_sampler):
    weights = {k: v.clone() for k, v in tiny_sd.model.state_dict().items()}
    still = run_sampler(tiny_sd, frames=FRAMES)
    assert torch.equal(run_sampler(patched(options=OFF), frames=FRAMES), still)
    assert torch.equal(run_sampler(patched(scale=0.0, options={"tokens": 0.0}), frames=FRAMES), still)
    on = patched()
    first = run_sampler(on, frames=FRAMES)
    assert not close(first, still, 0.01)
    assert torch.equal(run_sampler(on, frames=FRAMES), first)
    assert torch.equal(run_sampler(on.clone().clone(), frames=FRAMES), first)
    assert torch.equal(run_sampler(tiny_sd, frames=FRAMES), still)
    after = tiny_sd.model.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[k], v) for k, v in weights.items())
    assert tiny_sd.model_options == {"transformer_options": {}}


@pytest.mark.slow
def test_all_combinations_of_the_parts_are_different(patched, harivo_file, run_sampler):
    file = harivo_file()
    results = []
    for switches in product((0.0, 1.0), repeat=3):
        options = dict(zip(PARTS, switches, strict=True))
        results.append(run_sampler(patched(file=file, options=options), frames=FRAMES, steps=1))
    assert not any(close(a, b, 1e-3) for i, a in enumerate(results) for b in results[:i])


def test_a_part_that_the_file_does_not_have_does_nothing(patched, run_sampler):
    """Changing its strength is not an error, so that one graph works for files with and without it."""
    plain = {"mapping": None, "tokens": None}
    one = run_sampler(patched(**plain), frames=FRAMES, steps=1)
    assert torch.equal(
        run_sampler(patched(**plain, options={"mapping": 0.5, "tokens": 0.3}), frames=FRAMES, steps=1), one
    )


def test_strengths_in_between_lie_in_between(tiny_sd, patched, run_sampler):
    def run(**options):
        return run_sampler(patched(options=OFF | options), frames=FRAMES, steps=1, cfg=1.0)

    still = run_sampler(tiny_sd, frames=FRAMES, steps=1, cfg=1.0)
    change = [run(mapping=s) - still for s in (1e-3, 2e-3)]
    assert close(2 * change[0], change[1], 0.02)  # to first order
    assert not close(run(tokens=0.5), run(tokens=1.0), 0.001)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_start_and_end_bound_every_part(tiny_sd, patched, run_sampler, part):
    def run(model, **options):
        return run_sampler(model, frames=FRAMES, steps=4, **options)

    still = run(tiny_sd)
    never = {part: 1.0, "start_percent": 0.999, "end_percent": 0.9995}
    assert torch.equal(run(patched(options=OFF | never)), still)
    moving = patched(options=OFF | {part: 1.0})
    middle = run(moving, last_step=2, force_full_denoise=False)
    split = run(tiny_sd, start_step=2, noise=torch.zeros_like(middle), latent=middle)
    assert close(run(patched(options=OFF | {part: 1.0, "end_percent": 0.5})), split)


def test_tokens_are_made_once_for_each_prompt_and_run_the_empty_one_included(patched, sample):
    model = patched()
    calls = counted(model)
    sample(model, conditioning(1), conditioning(2), steps=5)
    assert len(calls) == 2  # not 10
    sample(model, conditioning(1), conditioning(2), steps=1)
    assert len(calls) == 4  # a run does not affect the next one
    two_clips = noise_of(2 * FRAMES)
    calls.clear()
    sample(model, conditioning(1), conditioning(2), two_clips, steps=3)
    assert len(calls) == 2
    calls.clear()
    sample(model, conditioning(1), conditioning(2), steps=3, cfg=1.0)
    assert len(calls) == 1
    calls.clear()
    off = patched(options={"tokens": 0.0})
    off_calls = counted(off)
    sample(off, conditioning(1), conditioning(2))
    assert off_calls == []


def test_conditions_of_the_same_words_share_tokens_and_areas_do_not_confuse_prompts(patched, harivo_file, sample):
    """ComfyUI fills areas with copies of conditions that have other texts, including our mark."""
    file = harivo_file()
    area = conditioning(1)[0][0]
    positive = [*conditioning(3), [area, {"area": (4, 8, 0, 0), "strength": 1.0}]]
    model = patched(file=file)
    calls = counted(model)
    together = sample(model, positive, conditioning(2))
    assert len(calls) == 3
    apart = patched(file=file)
    apart.add_object_patch("memory_required", lambda *a, **k: 1e30)  # one call for each condition
    assert close(sample(apart, positive, conditioning(2)), together)


def test_a_long_prompt_and_a_short_one(patched, sample):
    """ComfyUI repeats the shorter text, which does not change attention over text and tokens."""
    model = patched()
    one = sample(model, conditioning(1, tokens=154), conditioning(2))
    apart = patched()
    apart.add_object_patch("memory_required", lambda *a, **k: 1e30)
    assert close(sample(apart, conditioning(1, tokens=154), conditioning(2)), one)
    with pytest.raises(ValueError, match="a prompt of 40 tokens is shorter than the 77"):
        sample(model, conditioning(1, tokens=40), conditioning(2))


@pytest.mark.slow
def test_a_prompt_per_frame_gives_each_frame_its_own_tokens(patched, sample):
    model = patched(options={"strength": 0.0, "mapping": 0.0})
    each, none = conditioning(1, rows=FRAMES), conditioning(2)
    travelling = sample(model, each, none)
    for frame in range(FRAMES):
        one = [[each[0][0][frame : frame + 1], {}]]
        assert close(sample(model, one, none)[frame], travelling[frame])


def test_several_videos_in_one_batch_equal_separate_runs(patched, sample):
    model, noise = patched(), noise_of(3 * FRAMES)
    together = sample(model, conditioning(1), conditioning(2), noise)
    for clip in torch.arange(3 * FRAMES).chunk(3):
        assert close(together[clip], sample(model, conditioning(1), conditioning(2), noise[clip]))


@pytest.mark.slow
def test_context_windows_are_the_clips(tiny_sd, patched, run_sampler, windowed):
    one = run_sampler(patched(), frames=FRAMES)
    assert torch.equal(run_sampler(windowed(patched(), 4), frames=FRAMES), one)
    still = run_sampler(windowed(tiny_sd, 4), frames=10)
    for part in PARTS:
        moving = run_sampler(windowed(patched(frames=10, options=OFF | {part: 1.0}), 4), frames=10)
        assert not close(moving, still, 0.001)
    assert run_sampler(windowed(patched(frames=10), 4, causal_window_fix=True), frames=10).isfinite().all()


@pytest.mark.slow
def test_a_lora_and_a_controlnet_work_with_it_and_another_base_of_the_family_too(comfy, tiny_sd, patched, sample):
    from comfy import sd

    lora = {}
    generator = torch.Generator().manual_seed(4)
    for key, weight in tiny_sd.model.diffusion_model.state_dict().items():
        if key.endswith("weight") and weight.ndim == 2 and ".attn" in key:
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            lora[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=generator) * 0.5
            lora[f"{name}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator) * 0.5
    results = [sample(tiny_sd, conditioning(1), conditioning(2)), sample(patched(), conditioning(1), conditioning(2))]
    before, _ = sd.load_lora_for_models(tiny_sd, None, lora, 1.0, 0.0)
    after: Any
    after, _ = sd.load_lora_for_models(patched(), None, lora, 1.0, 0.0)
    assert len(after.patches) == len(lora) // 2
    results.append(sample(patched(model=before), conditioning(1), conditioning(2)))
    assert torch.equal(sample(after, conditioning(1), conditioning(2)), results[-1])
    # weight differences in every layer, like a fine-tuned base
    finetune = tiny_sd.clone()
    weights = tiny_sd.model.state_dict()
    other = {
        k: ("diff", (torch.randn(v.shape, generator=generator) * v.std() * 0.3,))
        for k, v in weights.items()
        if v.ndim > 1
    }
    finetune.add_patches(other)
    still = sample(finetune, conditioning(1), conditioning(2))
    results += [still, sample(patched(model=finetune), conditioning(1), conditioning(2))]
    assert not any(close(a, b, 0.01) for i, a in enumerate(results) for b in results[:i])
    assert torch.equal(sample(patched(model=finetune, options=OFF), conditioning(1), conditioning(2)), still)


def test_a_lora_as_a_hook_on_one_prompt_works_with_it(comfy, tiny_sd, patched, sample):
    """ComfyUI computes conditions with different hooks in separate calls."""
    import comfy.hooks

    key = next(k for k in tiny_sd.model.state_dict() if k.endswith("attn2.to_v.weight"))
    shape = tiny_sd.model.state_dict()[key].shape
    hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=0.0)
    hook.weights = {key: ("diff", (torch.randn(shape, generator=torch.Generator().manual_seed(3)),))}
    hook.need_weight_init = False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    model = patched()
    calls = counted(model)
    hooked = sample(model, conditioning(1, hooks=group), conditioning(2))
    assert len(calls) == 2
    assert not close(hooked, sample(model, conditioning(1), conditioning(2)), 0.01)


def test_image_tokens_through_an_attention_patch_combine_with_tokens_of_ours(tiny_sd, patched, sample):
    """Like IP-Adapters: a public patch adds tokens to cross-attention. Both sets of tokens are in the softmax."""
    picture = torch.randn(1, 4, CONTEXT, generator=torch.Generator().manual_seed(8))
    lengths = []

    def add_picture(n, context, value, _options):
        lengths.append(context.shape[1])
        more = picture.to(context).expand(len(context), -1, -1)
        return n, torch.cat([context, more], dim=1), torch.cat([value, more], dim=1)

    def with_picture(model):
        model = model.clone()
        model.set_model_attn2_patch(add_picture)
        return model

    options = {"strength": 0.0, "mapping": 0.0}
    models = [
        tiny_sd,
        with_picture(tiny_sd),
        patched(options=options),
        with_picture(patched(options=options)),
        patched(options=options, model=with_picture(tiny_sd)),
    ]
    results = []
    for model in models:
        lengths.clear()
        results.append(sample(model, conditioning(1), conditioning(2)))
        if len(results) in (4, 5):
            assert set(lengths) == {80}
    assert torch.equal(results[3], results[4])
    assert not any(close(a, b, 0.001) for i, a in enumerate(results[:4]) for b in results[:i])


def test_two_harivo_models_add_up(patched, harivo_file, sample):
    """Each computes its tokens from the text alone; another motion model does not interfere."""
    one = harivo_file()
    other = trained()
    with torch.no_grad():
        other.tokens.conv.bias.add_(1.0)
        other.mapping.proj_out.bias.add_(0.1)
    both = patched(model=patched(file=one), file=harivo_file(other))
    calls = counted(both)
    results = [
        sample(m, conditioning(1), conditioning(2)) for m in (patched(file=one), patched(file=harivo_file(other)), both)
    ]
    assert len(calls) == 4
    assert {shape[1] for shape in calls} == {77}
    assert not any(close(a, b, 0.001) for i, a in enumerate(results) for b in results[:i])


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 0.02), (torch.bfloat16, 0.2)])
def test_half_precision_files(patched, harivo_file, run_sampler, dtype, share):
    model = trained()
    half = run_sampler(patched(file=harivo_file(model, dtype=dtype)), frames=FRAMES)
    full = run_sampler(patched(file=harivo_file(model)), frames=FRAMES)
    assert half.isfinite().all()
    assert close(half, full, share)
    assert not torch.equal(half, full)


def test_weights_that_stay_in_main_memory_give_the_same(patched, run_sampler):
    from comfy.patcher_extension import CallbacksMP

    model = patched()
    result = run_sampler(model, frames=FRAMES)

    def unload(patcher):
        for each in (patcher, *patcher.get_nested_additional_models()):
            each.partially_unload(torch.device("cpu"), 1e12)

    model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, "test", unload)
    assert torch.equal(run_sampler(model, frames=FRAMES), result)


def test_it_can_be_built_under_dynamic_memory_and_a_second_time(comfy, harivo_file, monkeypatch):
    import comfy.memory_management

    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    path = harivo_file()
    patcher: Any = load_motion(path).patcher
    factory, arguments = patcher.cached_patcher_init
    assert factory(*arguments, disable_dynamic=True).model is not patcher.model
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    model: Any = load_motion(path).patcher.model
    reference = trained()
    assert set(model.state_dict()) == set(reference.state_dict())
    x, context = noise_of(FRAMES), conditioning(1)[0][0]
    torch.testing.assert_close(model.mapping(x, FRAMES), reference.mapping(x, FRAMES))
    torch.testing.assert_close(model.tokens(context, FRAMES), reference.tokens(context, FRAMES))


def test_a_patch_that_replaces_the_unet_is_an_error(patched, run_sampler):
    model = patched(options={"strength": 0.0})
    model.set_model_unet_function_wrapper(lambda apply, arguments: torch.zeros_like(arguments["input"]))
    with pytest.raises(RuntimeError, match="modules were never run"):
        run_sampler(model, frames=FRAMES)


def test_another_text_width_latent_or_base_is_refused_by_name(patched):
    with pytest.raises(ValueError, match=r"text tokens of width 16, but this MODEL is SD15 with 32"):
        patched(tokens=TokenConfig(context_dim=16))
    with pytest.raises(ValueError, match=r"latents with 16 channels, but this MODEL is SD15 with 4"):
        patched(mapping=MappingConfig(channels=16, width=16, heads=4))
    with pytest.raises(ValueError, match=r"built for a U-Net with channels 32, 96"):
        patched(motion=MotionConfig(**dict[str, Any](SIZES | {"block_channels": (32, 96)})))


def test_a_clip_beyond_the_table_is_refused_before_anything_is_loaded(patched, run_sampler):
    with pytest.raises(ValueError, match=r"a clip has 16 frames.*8"):
        run_sampler(patched(frames=16), frames=16)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"mapping": 0.3, "tokens": 0.6, "strength": 0.8}])
def test_both_hosts_give_the_same_eps_on_the_pocket(comfy, root, tmp_path, options):
    """One file in ComfyUI's U-Net and in diffusers', with the pocket's own weights and sizes."""
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion
    from stillmotion.model_patches.comfy_host.pocket import load_pocket
    from stillmotion.model_patches.diffusers_host.harivo import attach
    from stillmotion.model_patches.diffusers_host.pocket import load_pocket as load_for_diffusers

    frames = 16
    model = trained(
        scale=0.03,
        motion=MotionConfig(block_channels=(64, 128, 128), layers_per_block=1, max_frames=16),
        mapping=MappingConfig(max_frames=16),
        tokens=TokenConfig(context_dim=128),
    )
    path = tmp_path / "h.safetensors"
    checkpoint.save(path, system="harivo", config=model.config.to_dict(), weights=model.state_dict())
    base, _clip, _vae = load_pocket(root / "pocket" / "pocket.safetensors")
    patched = apply_motion(base, load_motion(path), frames=frames, **options)
    unet = load_for_diffusers(root / "pocket" / "pocket.safetensors").unet
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2 * frames, 4, 16, 16, generator=generator)
    context = torch.randn(2, 77, 128, generator=generator).repeat_interleave(frames, dim=0)
    t = torch.full((2 * frames,), 300)
    still = unet(x, t, context).sample
    handle = attach(unet, model)
    handle.frames = frames
    for name, value in options.items():
        setattr(handle, "temporal" if name == "strength" else name, value)
    reference = unet(x, t, context).sample
    output = network_output(patched, x, t, context)
    assert (output - reference).abs().max() < 1e-4
    assert (still - reference).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.slow
def test_comfyui_runs_the_trained_weights(comfy, comfyui_dir, tmp_path):
    """The trainer's own forward, and its file in ComfyUI (G6 of tests/train/engine/test_guarantees.py)."""
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion
    from stillmotion.model_patches.comfy_host.pocket import load_pocket
    from stillmotion.training import registry
    from stillmotion.training.data.latents import Latents
    from stillmotion.training.systems import bases, harivo

    plan = registry.read(registry.find("harivo_pocket"), out=tmp_path)
    base = bases.load(plan.base, comfyui_dir / "comfy" / "sd1_tokenizer")
    cache = Latents(torch.randn(2, 16, 4, 16, 16).half(), [i / 15 for i in range(16)], 0)
    task = harivo.HarivoTask(base, harivo.harivo_config(plan.model, base, plan.data.frames), plan, cache)
    generator = torch.Generator().manual_seed(1)
    for tensor in task.harivo.state_dict().values():  # different from the initial weights, and rounded like the file
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.03).copy_(tensor.half())
    batch = task.draw([0, 1])
    t = torch.full((2,), 300)
    trained_eps = task.predict(batch.x_t, t, batch.context).flatten(0, 1)
    harivo.write(task, {f"harivo.{n}": p for n, p in task.harivo.named_parameters()}, tmp_path / "h.safetensors")
    task.handle.remove()

    model, _clip, _vae = load_pocket(POCKET / "pocket.safetensors")
    patched = apply_motion(model, load_motion(tmp_path / "h.safetensors"), frames=16)
    contexts, times = batch.context.repeat_interleave(16, 0), t.repeat_interleave(16)
    output = network_output(patched, batch.x_t.flatten(0, 1), times, contexts)
    assert (output - trained_eps).abs().max() < 1e-4
    assert (base.unet(batch.x_t.flatten(0, 1), times, contexts).sample - trained_eps).abs().max() > 0.01


def network_output(model, x, t, context):
    """The U-Net's output at the timestep t for its own, scaled input x, in a real call of the MODEL."""
    from comfy import model_management
    from comfy.patcher_extension import WrappersMP

    outputs = []

    def listen(executor, *args, **kwargs):
        outputs.append(executor(*args, **kwargs))
        return outputs[-1]

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", listen)
    model_management.load_models_gpu([model, *model.get_nested_additional_models()])
    model.pre_run()
    sigma = model.model.model_sampling.sigma(t.float())
    options = {"wrappers": model.wrappers, "patches": model.model_options["transformer_options"]["patches"]}
    options |= {"cond_or_uncond": [1, 0], "sigmas": sigma}
    unscaled = x * (1 + sigma.view(-1, 1, 1, 1) ** 2) ** 0.5
    model.model.apply_model(unscaled, sigma, c_crossattn=context, transformer_options=options)
    model.cleanup()
    return outputs[0]
