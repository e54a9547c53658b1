"""The retention branch in real ComfyUI runs: it combines with ControlNets and gives the same numbers as diffusers."""

import logging

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.assembly import dreamvideo_model
from stillmotion.model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig
from stillmotion.model_patches.layouts import CheckpointError
from stillmotion.model_patches.vidrd.config import VidrdConfig

FRAMES = 4
SIZES = {"block_channels": (32, 64), "attention": (False, True), "heads": (2, 2), "layers_per_block": 1}
SIZES |= {"context_dim": 32}  # of conftest's tiny_sd
HINTS = (16, 32, 32)  # 4 pixels a latent


def config_of(*, motion=False, **changes):
    branch = RetentionConfig(**{**SIZES, "linear_projection": False, "hint_channels": HINTS, **changes})
    sizes = {name: getattr(branch, name) for name in SIZES}
    layers = VidrdConfig(**sizes, conv_layers=1, spatial=False, embedding="branch").to_dict()
    return DreamVideoConfig(
        branch=branch, layers=layers if motion or branch.temporal == "frozen" else None, motion=motion
    )


def random_model(config, seed=1, scale=0.1):
    torch.manual_seed(seed)
    model = dreamvideo_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model.eval()


def picture(seed=0, size=32, count=1):
    return torch.rand(count, size, size, 3, generator=torch.Generator().manual_seed(seed))


def conditioning(seed, length=77):
    return [[torch.randn(1, length, 32, generator=torch.Generator().manual_seed(seed)), {}]]


@pytest.fixture
def host(comfy):
    from stillmotion.model_patches.comfy_host.dreamvideo import retention as dreamvideo

    return dreamvideo


@pytest.fixture
def guidance(comfy):
    from stillmotion.model_patches.comfy_host.dreamvideo import guider as double_guidance

    return double_guidance


@pytest.fixture
def branch_file(tmp_path):
    """branch_file(scale=0.1, **config) -> the path of a DreamVideo file."""

    def write(*, seed=1, scale=0.1, dtype=torch.float32, **changes):
        config = config_of(**changes)
        path = tmp_path / f"d{len(list(tmp_path.iterdir()))}.safetensors"
        weights = {k: v.to(dtype) for k, v in random_model(config, seed, scale).state_dict().items()}
        checkpoint.save(path, system="dreamvideo", config=config.to_dict(), weights=weights)
        return path

    return write


@pytest.fixture
def conditions(host, branch_file):
    """conditions(image=..., **config) -> (positive, negative) with a branch."""

    def make(image=None, *, file=None, before=None, options=None, **changes):
        branch = host.load_branch(file or branch_file(**changes))
        return host.apply_retention(before or (conditioning(1), conditioning(2)), branch, image, **options or {})

    return make


@pytest.fixture
def run(comfy):
    """run(model, positive, negative, cfg=2.0, steps=3), or run(guider) -> the sampled latent."""
    from comfy import samplers

    def sample(model, positive=None, negative=None, *, cfg=2.0, steps=3, frames=FRAMES, size=8, sampler="euler"):
        guider = model
        if positive is not None:
            guider = samplers.CFGGuider(model)
            guider.set_conds(positive, negative)
            guider.set_cfg(cfg)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        sigmas = samplers.calculate_sigmas(sampling, "normal", steps)
        noise = torch.randn(frames, 4, size, size, generator=torch.Generator().manual_seed(5))
        with torch.inference_mode():
            ksampler = samplers.sampler_object(sampler)
            return guider.sample(noise, torch.zeros_like(noise), ksampler, sigmas, disable_pbar=True, seed=3).clone()

    return sample


def close(a, b, share=1e-4):
    """Equal up to a relative error, because random networks have no natural scale."""
    return bool((a - b).abs().max() <= share * b.abs().max())


def opened(model):
    from stillmotion.model_patches.comfy_host.motion.apply import with_handlers

    return with_handlers(model)


@pytest.mark.parametrize("inject", ["skips", "up_blocks"])
@pytest.mark.parametrize("temporal", ["frozen", "none"])
def test_a_fresh_branch_changes_no_bit(tiny_sd, conditions, run, inject, temporal):
    still = run(tiny_sd, conditioning(1), conditioning(2))
    fresh = conditions(picture(), scale=0.0, inject=inject, temporal=temporal)
    assert torch.equal(run(opened(tiny_sd), *fresh), still)
    trained = conditions(picture(), inject=inject, temporal=temporal)
    assert not close(run(opened(tiny_sd), *trained), still, 0.01)


def test_runs_leave_nothing_behind(tiny_sd, conditions, run):
    before, weights = (
        run(tiny_sd, conditioning(1), conditioning(2)),
        {k: v.clone() for k, v in tiny_sd.model.state_dict().items()},
    )
    a, b = conditions(picture(1)), conditions(picture(2))
    control = a[0][0][1]["control"]
    first, second, again = (run(tiny_sd, *pair) for pair in (a, b, a))
    assert torch.equal(first, again)
    assert not close(first, second, 0.001)
    assert control.features == {}
    assert control.sampling is None
    assert torch.equal(run(tiny_sd, conditioning(1), conditioning(2)), before)
    assert all(torch.equal(tiny_sd.model.state_dict()[k], v) for k, v in weights.items())
    assert tiny_sd.model_options == {"transformer_options": {}}


def test_strength_and_part_of_the_schedule(tiny_sd, conditions, branch_file, run):
    still, file = run(tiny_sd, conditioning(1), conditioning(2)), branch_file()

    def result_of(**options):
        return run(tiny_sd, *conditions(picture(), file=file, options=options))

    assert torch.equal(result_of(strength=0.0), still)
    results = [result_of(), result_of(strength=0.5), result_of(end_percent=0.3), result_of(start_percent=0.3)]
    assert not any(close(a, b, 0.001) for i, a in enumerate([still, *results]) for b in [still, *results][:i])
    with pytest.raises(ValueError, match=r"start_percent is 0\.6 and end_percent is 0\.5"):
        result_of(start_percent=0.6, end_percent=0.5)


def test_no_image_is_a_white_image(tiny_sd, conditions, branch_file, run):
    file = branch_file()
    a, b = (run(tiny_sd, *conditions(image, file=file)) for image in (None, torch.ones(1, 32, 32, 3)))
    assert torch.equal(a, b)
    assert not close(a, run(tiny_sd, *conditions(picture(), file=file)), 0.001)


@pytest.fixture
def stock(comfy):
    """stock(image) -> a function that adds ComfyUI's own ControlNet of tiny_sd's sizes to a condition."""
    import comfy.cldm.cldm
    import comfy.controlnet

    sizes = {"image_size": 32, "in_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1], "channel_mult": [1, 2]}
    sizes |= {"transformer_depth": [0, 1], "transformer_depth_middle": 1, "num_heads": 2, "num_head_channels": -1}
    sizes |= {"use_spatial_transformer": True, "context_dim": 32, "legacy": False, "hint_channels": 3}
    net = comfy.cldm.cldm.ControlNet(**sizes, dtype=torch.float32)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            fill = 0.0 if name.endswith("bias") else 1.0
            noise = 0.6 * torch.randn(weight.shape, generator=generator)
            weight.copy_(torch.full_like(weight, fill) if weight.ndim < 2 else noise / weight[0].numel() ** 0.5)
    control = comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))

    def behind(*pair):
        controls = {}

        def applied(options):
            before = options.get("control")
            if id(before) not in controls:
                hint = picture(9, 64).movedim(-1, 1)
                controls[id(before)] = control.copy().set_cond_hint(hint, 0.5).set_previous_controlnet(before)
            return options | {"control": controls[id(before)]}

        return tuple([[w, applied(o)] for w, o in condition] for condition in pair)

    return behind


def test_it_chains_with_controlnets_of_comfyui_in_any_order(tiny_sd, conditions, branch_file, run, stock):
    file = branch_file()
    behind = run(tiny_sd, *stock(*conditions(picture(), file=file)))
    before = run(tiny_sd, *conditions(picture(), file=file, before=stock(conditioning(1), conditioning(2))))
    assert close(behind, before)
    assert not close(behind, run(tiny_sd, *conditions(picture(), file=file)), 0.01)
    assert not close(behind, run(tiny_sd, *stock(conditioning(1), conditioning(2))), 0.01)


def test_comfyui_loads_the_weights_for_a_run(comfy, host, tiny_sd, branch_file, run):
    from comfy import model_management
    from comfy.patcher_extension import WrappersMP

    branch = host.load_branch(branch_file())
    on_device = []

    def listen(executor, *args, **kwargs):
        on_device.extend(m.model for m in model_management.current_loaded_models)
        return executor(*args, **kwargs)

    model = tiny_sd.clone()
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "test", listen)
    assert branch.patcher not in on_device
    run(model, *host.apply_retention((conditioning(1), conditioning(2)), branch, picture()))
    assert branch.patcher in on_device


def test_the_weights_are_the_same_in_other_types(tiny_sd, conditions, branch_file, run):
    full, half = (run(tiny_sd, *conditions(picture(), file=branch_file(dtype=d))) for d in (torch.float32, torch.half))
    assert close(half, full, 0.02)
    assert torch.isfinite(half).all()


def test_weights_are_complete_where_comfyui_makes_layers_without_any(comfy, host, branch_file, monkeypatch):
    """With dynamic memory, linear layers have no weights until a file is loaded; zero weights must be loaded, too."""
    import comfy.memory_management

    file = branch_file(scale=0.0)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    model = host.load_branch(file).patcher.model
    assert all(torch.equal(v, torch.zeros_like(v)) for k, v in model.state_dict().items() if "controlnet_mid" in k)
    assert model.state_dict().keys() == {
        k.removeprefix("branch.") for k in checkpoint.load(file, expect="dreamvideo").weights
    }


def test_another_aspect_is_logged_with_the_rule(tiny_sd, conditions, run, caplog):
    wide = torch.rand(1, 32, 64, 3)
    for rule, effect in (("crop", "it is cropped"), ("pad", "white edges are added"), ("stretch", "stretched")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run(tiny_sd, *conditions(wide, options={"rule": rule}))
        (line,) = [record.message for record in caplog.records if "image retention" in record.message]
        assert "the image has 64 x 32 pixels, the video 32 x 32" in line
        assert effect in line


def test_images_that_cannot_be_one_are_refused_before_anything_runs(conditions):
    with pytest.raises(ValueError, match="the input has 2 images, but one is needed"):
        conditions(picture(count=2))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"block_channels": (64, 64)}, r"block channels \(64, 64\), but this MODEL is SD15 with \(32, 64\)"),
        ({"layers_per_block": 2}, "layers in a block 2, but this MODEL is SD15 with 1"),
        ({"context_dim": 48}, "text width 48, but this MODEL is SD15 with 32"),
    ],
)
def test_a_branch_of_another_base_is_refused(tiny_sd, conditions, guidance, run, sizes, message):
    pair = conditions(picture(), temporal="none", **sizes)
    with pytest.raises(ValueError, match=message):
        run(tiny_sd, *pair)
    with pytest.raises(ValueError, match=message):
        guidance.double_condition_guider(tiny_sd, *pair, text=7.5, image=1.5)


def test_up_blocks_need_a_model_that_lets_them_in(tiny_sd, conditions, run, weight_file):
    pair = conditions(picture(), inject="up_blocks")
    with pytest.raises(ValueError, match="sample with Double-Condition Guider, or add a motion model"):
        run(tiny_sd, *pair)


def test_a_dreamvideo_file_is_a_motion_model_too(comfy, tiny_sd, branch_file, run):
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    motion = load_motion(branch_file(motion=True))
    assert "VidRD" in motion.info
    result = run(apply_motion(tiny_sd, motion, frames=FRAMES), conditioning(1), conditioning(2))
    assert not close(result, run(tiny_sd, conditioning(1), conditioning(2)), 0.01)
    with pytest.raises(CheckpointError, match="without a motion model"):
        load_motion(branch_file(motion=False))


@pytest.mark.slow
def test_frozen_layers_take_the_clips_of_the_motion_model(comfy, tiny_sd, conditions, branch_file, run):
    """Two clips in one batch are two runs; without a motion model the whole batch is one clip."""
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    file = branch_file(motion=True)
    calls = []

    def frames_of(model):
        control = conditions(picture(), file=file)
        module = control[0][0][1]["control"].branch.patcher.model
        hook = module.register_forward_pre_hook(lambda _m, args: calls.append(args[4]))
        run(model, *control)
        hook.remove()
        return calls.pop()

    assert frames_of(tiny_sd) == FRAMES
    assert frames_of(apply_motion(tiny_sd, load_motion(file), frames=2)) == 2


def test_it_works_in_context_windows(tiny_sd, conditions, run, windowed):
    result = run(windowed(tiny_sd, 2), *conditions(picture()))
    assert torch.isfinite(result).all()


def test_a_copy_for_another_device_has_its_own_weights(tiny_sd, conditions, run):
    (positive, negative) = conditions(picture())
    control = positive[0][1]["control"]
    clone = control.deepclone_multigpu(torch.device("cpu"), autoregister=True)
    assert control.get_instance_for_device(torch.device("cpu")) is clone
    weights, copied = (c.control_model_wrapped.model.state_dict() for c in (control, clone))
    assert all(torch.equal(copied[k], v) and copied[k].data_ptr() != v.data_ptr() for k, v in weights.items())
    expected = run(tiny_sd, positive, negative)
    control.multigpu_clones.clear()
    pair = [[[w, o | {"control": clone}] for w, o in condition] for condition in (positive, negative)]
    assert torch.equal(run(tiny_sd, *pair), expected)


def test_it_can_be_limited_to_frames(tiny_sd, conditions, branch_file, run):
    """With all frames selected nothing changes; without the first frame, the video differs."""
    from stillmotion.model_patches.comfy_host.conditions.control import limit_to_frames

    file = branch_file(temporal="none")
    pair = conditions(picture(), file=file)
    whole = run(tiny_sd, *pair)
    assert close(run(tiny_sd, *limit_to_frames(pair, dict.fromkeys(range(FRAMES), 1.0), FRAMES)), whole)
    first = run(tiny_sd, *limit_to_frames(pair, {0: 1.0}, FRAMES))
    plain = run(tiny_sd, conditioning(1), conditioning(2))
    assert close(first[:1], whole[:1])
    assert close(first[1:], plain[1:])
    white = limit_to_frames(conditions(None, file=file), {0: 1.0}, FRAMES)
    assert not close(run(tiny_sd, *white)[:1], first[:1], 0.001)
    with pytest.raises(ValueError, match="adds to the outputs of the up blocks, which cannot be limited to frames"):
        limit_to_frames(conditions(picture(), inject="up_blocks"), {0: 1.0}, FRAMES)
