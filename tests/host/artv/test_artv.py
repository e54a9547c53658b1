"""ART-V on a real ComfyUI MODEL: an untrained model is the identity, nothing stays behind, errors come before work."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.artv.config import POCKET, ArtvConfig
from stillmotion.model_patches.artv.model import ArtvModel
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel
from stillmotion.model_patches.layouts import CheckpointError

SMALL = ArtvConfig(  # the sizes of conftest's tiny_sd
    block_channels=(32, 64),
    attention=(False, True),
    heads=(4, 4),
    mask_channels=(16, 32),
    mask_heads=(2, 2),
    layers_per_block=1,
    context_dim=32,
)
NO_REFERENCE, NO_ANCHOR, WHOLE = frozenset({"reference"}), frozenset({"anchor"}), frozenset()


def random_model(scale=0.1, seed=1, **changes):
    torch.manual_seed(seed)
    model = ArtvModel(replace(SMALL, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def artv_file(weight_file):
    """artv_file(scale=0.1, seed=1, dtype=..., **config) -> the path of a StillMotion file."""

    def write(dtype=torch.float32, **sizes):
        return weight_file("artv", random_model(**sizes), dtype)

    return write


@pytest.fixture
def frame_inputs(comfy):
    """frame_inputs(size=(8, 8), references=True, anchor=True, level=200, seed=0) -> the conditions of a frame."""
    from stillmotion.model_patches.comfy_host.artv.checks import FrameInputs

    def make(size=(8, 8), *, references=True, anchor=True, level=200, seed=0):
        return FrameInputs(
            noise(2, 4, *size, seed=seed + 1) if references else None,
            noise(4, *size, seed=seed + 2) if anchor else None,
            level,
            noise(3, 4, *size, seed=seed + 3),
        )

    return make


@pytest.fixture
def patched_model(comfy, tiny_sd, artv_file, frame_inputs):
    """patched_model(inputs=frame_inputs(), model=tiny_sd, file=..., **of apply_artv) -> a MODEL for the next frame."""
    from stillmotion.model_patches.comfy_host.artv.apply import apply_artv
    from stillmotion.model_patches.comfy_host.artv.files import load_artv

    def patch(inputs=None, *, model=None, file=None, **options):
        sizes = {k: options.pop(k) for k in list(options) if k in {"scale", "seed", "dtype", *SMALL.to_dict()}}
        return apply_artv(model or tiny_sd, load_artv(file or artv_file(**sizes)), inputs or frame_inputs(), **options)

    return patch


@pytest.fixture
def frame(run_sampler):
    """frame(model, ...) -> one latent of a MODEL."""

    def run(model, **options):
        return run_sampler(model, **{"frames": 1, "steps": 2} | options)

    return run


def close(a, b, share=1e-4):
    return bool((a - b).abs().max() <= share * b.abs().max())


@pytest.mark.slow
def test_a_fresh_model_with_blank_references_changes_no_bit(tiny_sd, patched_model, frame_inputs, frame):
    still = frame(tiny_sd)
    blank = frame_inputs(references=False, anchor=False)
    assert torch.equal(frame(patched_model(blank, scale=0.0)), still)
    assert not torch.equal(frame(patched_model(blank)), still)


def test_fresh_adapters_and_anchors_change_no_bit_at_level_0(tiny_sd, patched_model, frame_inputs, frame):
    """Only the mask has an effect then: 1/2 of the reference everywhere."""
    still = frame(tiny_sd)
    assert torch.equal(frame(patched_model(frame_inputs(level=0), scale=0.0, mask=False)), still)
    assert not close(frame(patched_model(frame_inputs(level=0), scale=0.0)), still, 0.01)
    assert not close(
        frame(patched_model(frame_inputs(level=200), scale=0.0, mask=False)), still, 1e-3
    )  # the level is an input


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2s_ancestral"])
def test_references_anchor_and_mask_each_count(patched_model, artv_file, frame_inputs, frame, sampler):
    path = artv_file()
    whole = frame_inputs()
    results = [
        frame(patched_model(inputs, file=path, mask=mask), sampler=sampler)
        for inputs, mask in (
            (whole, True),
            (replace(whole, references=whole.references.flip(0)), True),
            (replace(whole, anchor=-whole.anchor), True),
            (replace(whole, level=100), True),
            (replace(whole, references=None), True),
            (replace(whole, anchor=None), True),
            (whole, False),
        )
    ]
    assert all(bool(torch.isfinite(result).all()) for result in results)
    for i, result in enumerate(results):
        assert not any(close(result, other, 1e-3) for other in results[:i]), i


def test_nothing_is_left_behind(tiny_sd, patched_model, artv_file, frame_inputs, frame):
    weights = {k: v.clone() for k, v in tiny_sd.model.state_dict().items()}
    still, path = frame(tiny_sd), artv_file()
    one, two = patched_model(file=path), patched_model(frame_inputs(seed=20), file=path)
    first, second, again = (frame(model) for model in (one, two, one))
    assert torch.equal(first, again)
    assert not close(first, second, 0.01)
    assert torch.equal(frame(tiny_sd), still)
    assert all(torch.equal(tiny_sd.model.state_dict()[k], v) for k, v in weights.items())
    assert tiny_sd.model_options == {"transformer_options": {}}
    assert not [key for key in one.model_options["transformer_options"] if "stillmotion" in str(key)]


@pytest.mark.slow
def test_the_next_frame_replaces_the_one_before(patched_model, artv_file, frame_inputs, frame):
    """A second ART-V model replaces the first one on a MODEL; it is not a second pass."""
    path, other = artv_file(), frame_inputs(seed=20)
    twice = patched_model(other, file=path, model=patched_model(file=path))
    assert torch.equal(frame(twice), frame(patched_model(other, file=path)))
    assert len(twice.get_additional_models_with_key("stillmotion.artv")) == 1


def test_the_adapters_run_once_a_frame_and_condition(patched_model, frame, monkeypatch):
    from stillmotion.model_patches.artv.adapter import ReferenceAdapter

    calls = []
    inner = ReferenceAdapter.forward
    monkeypatch.setattr(ReferenceAdapter, "forward", lambda self, x: calls.append(len(x)) or inner(self, x))
    frame(patched_model(), steps=3)
    assert calls == [1, 1]  # of the dynamic and of the mask network
    calls.clear()
    frame(patched_model(left_out=(WHOLE, NO_REFERENCE)), steps=3)
    assert calls == [1, 1] * 2
    calls.clear()
    frame(patched_model(cache=False), steps=3, cfg=1.0)
    assert calls == [1, 1] * 3


def test_the_cache_changes_no_bit(patched_model, artv_file, frame):
    path = artv_file()
    assert torch.equal(frame(patched_model(file=path, cache=False)), frame(patched_model(file=path)))


def predictions(model, conditions, x, sigma=2.0, separate=False):
    """The predicted clean latents of several conditions in one call, as a guider receives them."""
    import comfy.samplers
    from comfy import model_management

    model_management.load_models_gpu([model, *model.get_nested_additional_models()])
    model.pre_run()
    options = {"transformer_options": {**model.model_options["transformer_options"], "wrappers": model.wrappers}}
    level = torch.full((len(x),), sigma)
    batch = [[{"model_conds": _text(c), "uuid": i, "control": None}] for i, c in enumerate(conditions)]
    with torch.inference_mode():
        if separate:
            calls: Any = [[None] * i + [one] for i, one in enumerate(batch)]
            x_0 = [comfy.samplers.calc_cond_batch(model.model, call, x, level, options)[-1] for call in calls]
        else:
            x_0 = comfy.samplers.calc_cond_batch(model.model, batch, x, level, options)
    model.cleanup()
    return x_0


def _text(tokens):
    import comfy.conds

    return {"c_crossattn": comfy.conds.CONDCrossAttn(tokens)}


@pytest.mark.slow
def test_conditions_in_one_batch_equal_separate_calls(tiny_sd, patched_model, artv_file, frame_inputs):
    """Each prediction lacks the conditions in left_out, whatever else is in the batch."""
    path, x = artv_file(), 2.0 * noise(2, 4, 8, 8, seed=9)
    prompt, empty = noise(1, 7, 32, seed=4), noise(1, 7, 32, seed=5)
    kinds = (WHOLE, NO_REFERENCE, NO_ANCHOR, NO_REFERENCE | NO_ANCHOR, WHOLE)
    texts = [prompt] * 4 + [empty]
    model = patched_model(file=path, left_out=kinds)
    together, separate = predictions(model, texts, x), predictions(model, texts, x, separate=True)
    whole = frame_inputs()
    alone = [
        predictions(patched_model(inputs, file=path), [text], x)[0]
        for inputs, text in (
            (whole, prompt),
            (replace(whole, references=None), prompt),
            (replace(whole, anchor=None), prompt),
            (replace(whole, references=None, anchor=None), prompt),
            (whole, empty),
        )
    ]
    for a, b, c in zip(together, separate, alone, strict=True):
        assert close(a, b, 1e-5)
        assert close(a, c, 1e-5)
    for i, one in enumerate(together):
        assert not any(close(one, other, 1e-3) for other in together[:i])


def test_a_guider_with_more_conditions_than_left_out_is_an_error(patched_model):
    with pytest.raises(ValueError, match="uses condition 2, but left_out has 2 entries"):
        predictions(patched_model(), [noise(1, 7, 32)] * 3, noise(1, 4, 8, 8))


def test_a_mask_of_one_gives_the_frame_before_and_the_trace_tells_it(
    patched_model, artv_file, weight_file, frame_inputs, frame
):
    model = random_model()
    with torch.no_grad():
        model.mask.conv_out.weight.zero_()
        model.mask.conv_out.bias.fill_(100.0)
    trace = []
    whole = frame_inputs()
    patched = patched_model(
        whole,
        file=weight_file("artv", model),
        left_out=(WHOLE, NO_REFERENCE),
        trace=lambda sigma, k, m: trace.append((sigma, k, tuple(m.shape), float(m.mean()))),
    )
    result = frame(patched, cfg=1.0)
    expected = patched.model.process_latent_out(whole.references[:1])
    assert close(result, expected, 1e-3)
    assert [(k, size, m) for _, k, size, m in trace] == [(0, (1, 1, 8, 8), 1.0)] * 2
    assert trace[0][0] > trace[1][0] > 0  # sigma
    trace.clear()
    frame(patched, cfg=2.0)
    assert {(k, m) for _, k, _, m in trace} == {(0, 1.0), (1, 0.0)}  # without references, nothing can be copied


def test_eps_and_v_give_the_same_frame_from_the_same_prediction(tiny_sd, patched_model, artv_file, frame_inputs):
    """The blend is computed on the clean latent, so that eps- and v-prediction are equivalent."""
    from comfy import model_sampling
    from comfy.patcher_extension import WrappersMP

    class Velocity(model_sampling.ModelSamplingDiscrete, model_sampling.V_PREDICTION):
        pass

    path, x, prompt = artv_file(), 2.0 * noise(1, 4, 8, 8, seed=9), noise(1, 7, 32, seed=4)

    def rewritten(executor, y_t, timesteps, *args, **kwargs):
        """v from the eps of the U-Net: (eps - sqrt(1 - abar) y_t) / sqrt(abar)."""
        abar = 1 / (1 + 2.0**2)
        return (executor(y_t, timesteps, *args, **kwargs) - (1 - abar) ** 0.5 * y_t) / abar**0.5

    velocity = tiny_sd.clone()
    velocity.add_object_patch("model_sampling", Velocity(tiny_sd.model.model_config))
    velocity.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", rewritten)
    eps = predictions(patched_model(file=path), [prompt], x)[0]
    velocity.patch_model()  # object patches are set when ComfyUI loads the MODEL
    try:
        v = predictions(patched_model(file=path, model=velocity), [prompt], x)[0]
    finally:
        velocity.unpatch_model()
    assert close(v, eps, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["paper", "reversed"])
def test_other_static_parts_are_other_frames(patched_model, artv_file, frame, form):
    result = frame(patched_model(static=form))
    assert bool(torch.isfinite(result).all())
    assert not close(result, frame(patched_model()), 0.01)


def test_clip_tokens_may_be_the_anchor(patched_model, frame_inputs, frame):
    inputs = replace(frame_inputs(), anchor=noise(5, 24, seed=7))
    results = [
        frame(patched_model(one, anchor="clip", anchor_width=24))
        for one in (inputs, replace(inputs, anchor=-inputs.anchor), replace(inputs, anchor=None))
    ]
    assert not any(close(results[0], other, 1e-3) for other in results[1:])
    with pytest.raises(ValueError, match=r"the anchor, CLIP tokens for this file, is \(4, 8, 8\)"):
        patched_model(anchor="clip", anchor_width=24)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_files_are_close_to_full_ones(patched_model, frame, dtype):
    assert close(frame(patched_model(dtype=dtype), steps=1), frame(patched_model(), steps=1), 0.1)


def test_odd_sizes_run(tiny_sd, patched_model, frame_inputs, frame):
    latent = torch.zeros(1, 4, 9, 6)
    result = frame(patched_model(frame_inputs((9, 6))), latent=latent)
    assert result.shape == latent.shape
    assert bool(torch.isfinite(result).all())


def test_several_images_are_generated_from_the_same_frames(patched_model, run_sampler):
    start = noise(3, 4, 8, 8, seed=5)
    model = patched_model()
    together = run_sampler(model, latent=torch.zeros_like(start), noise=start, steps=2)
    alone = run_sampler(model, latent=torch.zeros_like(start[:1]), noise=start[1:2], steps=2)
    assert close(together[1:2], alone, 1e-3)


def test_other_bases_are_refused_with_the_difference(tiny_wan, patched_model):
    with pytest.raises(ValueError, match="ART-V model: this MODEL is WAN21_T2V, whose network is a WanModel"):
        patched_model(model=tiny_wan)
    with pytest.raises(ValueError, match="it has a layer of 96 channels at down block 1, layer 0"):
        patched_model(block_channels=(32, 96))
    with pytest.raises(
        ValueError, match="it has a layer of 32 channels at down block 0, layer 0, after its cross-attention"
    ):
        patched_model(attention=(True, True))
    with pytest.raises(ValueError, match=r"trained with text tokens of width 48, but this MODEL is SD15 with 32"):
        patched_model(context_dim=48)
    with pytest.raises(ValueError, match=r"trained with latent channels 8, but this MODEL is SD15 with 4"):
        patched_model(latent_channels=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": noise(1, 4, 8, 8)}, r"the references is \(1, 4, 8, 8\), but must be \(2, 4, 8, 8\)"),
        ({"references": noise(2, 4, 8, 6)}, r"but must be \(2, 4, 8, 8\); resize it"),
        ({"anchor": noise(4, 6, 8)}, r"the anchor is \(4, 6, 8\), but must be \(4, 8, 8\)"),
        ({"anchor": torch.full((4, 8, 8), float("nan"))}, "the anchor contains NaN"),
        ({"level": 1000}, "the augmentation level is 1000; it must be a time step from 0 to 999"),
        ({"noise": noise(2, 4, 8, 8)}, r"noise is \(2, 4, 8, 8\); it must be \(3, 4, height, width\)"),
    ],
)
def test_invalid_frame_inputs_are_refused_before_anything_runs(patched_model, frame_inputs, changes, message):
    with pytest.raises(ValueError, match=message):
        patched_model(replace(frame_inputs(), **changes))


def test_the_latent_and_the_conditions_must_be_of_the_whole_frame(comfy, patched_model, frame):
    from comfy import sample

    with pytest.raises(
        ValueError, match=r"the latent to sample is \(1, 4, 8, 10\), but references and anchor are \(4, 8"
    ):
        frame(patched_model(), latent=torch.zeros(1, 4, 8, 10))
    prompt = noise(1, 77, 32)
    latent = torch.zeros(1, 4, 8, 8)
    area = [[prompt, {"area": (4, 4, 0, 0), "strength": 1.0}]]
    start = sample.prepare_noise(latent, 1)
    with pytest.raises(ValueError, match="the positive condition is for an area of the image"):
        sample.sample(
            patched_model(), start, 1, 2.0, "euler", "normal", area, [[prompt, {}]], latent, disable_pbar=True
        )


def test_who_is_in_the_way_is_named(tiny_sd, patched_model, weight_file, frame):
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.patcher_extension import WrappersMP

    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    def handler(layer, x, emb, context, options, *_):
        return layer(x, context, options)

    crowded = tiny_sd.clone()
    crowded.set_model_forward_timestep_embed_patch((SpatialTransformer, handler))
    with pytest.raises(ValueError, match="already handles the SpatialTransformer layers of this MODEL"):
        patched_model(model=crowded)
    motion = MotionModel(MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, max_frames=8))
    moving = apply_motion(tiny_sd, load_motion(weight_file("motion", motion)), frames=2)
    with pytest.raises(ValueError, match="this MODEL has a motion model on it, which generates whole clips"):
        patched_model(model=moving)

    def replaced(executor, x, *args, **kwargs):
        return torch.zeros_like(x)

    deaf = patched_model()
    deaf.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", replaced)
    with pytest.raises(RuntimeError, match=r"6 of its 6 parts were never run \(first: adapter at down block 0"):
        frame(deaf)


def test_left_out_names_are_checked(patched_model):
    with pytest.raises(ValueError, match="left_out names text; only reference and anchor can be left out"):
        patched_model(left_out=(WHOLE, frozenset({"text"})))


def test_the_loader_takes_artv_files_only(comfy, weight_file, artv_file, tmp_path):
    from stillmotion.model_patches.comfy_host.artv.files import load_artv

    loaded = load_artv(artv_file())
    assert loaded.config == SMALL
    assert "ART-V: adapter and 4 anchor blocks for block channels (32, 64)" in loaded.info
    assert loaded.patcher.cached_patcher_init is not None
    again = loaded.patcher.cached_patcher_init[0](*loaded.patcher.cached_patcher_init[1], disable_dynamic=True)
    assert again.model.state_dict().keys() == loaded.patcher.model.state_dict().keys()
    motion = MotionModel(MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, max_frames=8))
    with pytest.raises(CheckpointError, match="is a StillMotion 'motion' file: a 'artv' file is needed here"):
        load_artv(weight_file("motion", motion))


def test_memory_management_that_makes_weights_late_still_loads_them(comfy, artv_file, monkeypatch):
    """With dynamic memory, ComfyUI's Linear has no weight until it is loaded."""
    import comfy.memory_management

    from stillmotion.model_patches.comfy_host.artv.files import load_artv

    path = artv_file()
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    weights = load_artv(path).patcher.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in checkpoint.load(path, expect="artv").weights.items())


def test_the_node_reads_a_file_of_its_list(comfy, artv_file, monkeypatch):
    from stillmotion.nodes import artv

    path = artv_file()
    monkeypatch.setitem(artv.BUNDLED, "pocket/artv.safetensors", path)
    outputs: Any = artv.LoadArtvModel.execute("pocket/artv.safetensors").result
    model, info = outputs
    assert (model.path, model.config) == (path, SMALL)
    assert "ART-V" in info
    with pytest.raises(ValueError, match=r"ART-V model: the file gone\.safetensors does not exist; put it in one of"):
        artv.LoadArtvModel.execute("gone.safetensors")


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("kind", [WHOLE, NO_REFERENCE, NO_ANCHOR, NO_REFERENCE | NO_ANCHOR])
@pytest.mark.parametrize("changes", [{}, {"static": "paper", "level_embedding": "inside"}])
def test_both_hosts_give_the_same_noise_on_the_pocket(root, patched_model, weight_file, frame_inputs, kind, changes):
    """One file in ComfyUI's U-Net and in diffusers'."""
    from stillmotion.model_patches.comfy_host.pocket import load_pocket
    from stillmotion.model_patches.diffusers_host import pocket
    from stillmotion.model_patches.diffusers_host.artv import ArtvUNet

    torch.manual_seed(1)
    model = ArtvModel(replace(POCKET, **changes)).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
    file = root / "pocket" / "pocket.safetensors"
    base, inputs = load_pocket(file)[0], frame_inputs((16, 12))
    sampling: Any = base.get_model_object("model_sampling")
    sigma = float(sampling.sigma(torch.tensor(400)))
    y_t, prompt = noise(1, 4, 16, 12, seed=9), noise(1, 77, 128, seed=4)
    x = y_t * (1 + sigma**2) ** 0.5
    masks = []
    patched = patched_model(
        inputs, model=base, file=weight_file("artv", model), left_out=(kind,), trace=lambda _s, _k, m: masks.append(m)
    )
    eps = (x - predictions(patched, [prompt], x, sigma)[0]) / sigma
    reference = ArtvUNet(pocket.load_pocket(file).unet, model)
    expected, m, dynamic = reference(
        y_t,
        torch.tensor([400]),
        prompt,
        inputs.references[None],
        inputs.anchor[None],
        inputs.noise[None],
        torch.tensor([inputs.level]),
        no_references=torch.tensor(["reference" in kind]),
        no_anchor=torch.tensor(["anchor" in kind]),
    )
    assert (eps - expected).abs().max() < 1e-4
    assert (masks[0] - m).abs().max() < 1e-5
    still = reference.unet(y_t, torch.tensor([400]), prompt).sample
    assert (dynamic - still).abs().max() > 1e-2
    assert ("reference" in kind) == torch.equal(expected, dynamic)
