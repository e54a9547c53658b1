"""A ControlNet on a few frames only: which frames it affects, with which image, and what it does not change."""

from typing import Any

import pytest
import torch

FRAMES, CONTEXT = 4, 32


def random_controlnet(seed=6):
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops
    from comfy import model_management

    sizes = {"image_size": 32, "in_channels": 4, "hint_channels": 3, "model_channels": 32, "channel_mult": (1, 2)}
    depth = {"num_res_blocks": [1, 1], "transformer_depth": [0, 1], "transformer_depth_middle": 1, "num_heads": 2}
    attention = {"use_spatial_transformer": True, "context_dim": CONTEXT, "legacy": False}
    net = comfy.cldm.cldm.ControlNet(**sizes, **depth, **attention, operations=comfy.ops.manual_cast)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in net.named_parameters():
        random = torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5
        weight.data = random if weight.ndim > 1 else torch.full(weight.shape, float(not name.endswith("bias")))
    return comfy.controlnet.ControlNet(net, load_device=model_management.get_torch_device())


def conditioning(seed, **options):
    return [[torch.randn(1, 77, CONTEXT, generator=torch.Generator().manual_seed(seed)), options]]


def pictures(count, seed=3):
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def with_control(hint, *, control=None, before=None) -> Any:
    """Positive and negative, as from Apply ControlNet."""
    net = (control or random_controlnet()).copy().set_cond_hint(hint, 0.8)
    net.set_previous_controlnet(before)
    options = {"control": net, "control_apply_to_uncond": False}
    return conditioning(1, **options), conditioning(2, **options)


@pytest.fixture
def sample(comfy, tiny_sd):
    from comfy import sample as sampling

    def run(conditions, frames=FRAMES, *, model=None, steps=2):
        noise = torch.randn(frames, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        with torch.inference_mode():
            arguments: Any = (
                model or tiny_sd,
                noise,
                steps,
                2.0,
                "euler",
                "normal",
                *conditions,
                torch.zeros_like(noise),
            )
            return sampling.sample(*arguments, seed=0, disable_pbar=True)

    return run


@pytest.fixture
def limited(comfy):
    from stillmotion.nodes import sampling

    node: Any = sampling.ControlNetFrames

    def limit(conditions, text, frames=FRAMES) -> Any:
        return node.execute(*conditions, text, frames).result

    return limit


def test_named_frames_are_as_with_the_controlnet_and_the_others_as_without(sample, limited):
    """Without a motion model, frames are independent, so each one is either with or without control."""
    conditions = with_control(pictures(FRAMES))
    everywhere, nowhere = sample(conditions), sample((conditioning(1), conditioning(2)))
    some = sample(limited(conditions, "0, -1"))
    for frame, controlled in enumerate((True, False, False, True)):
        torch.testing.assert_close(some[frame], (everywhere if controlled else nowhere)[frame], rtol=1e-4, atol=1e-3)
        assert not torch.allclose(some[frame], (nowhere if controlled else everywhere)[frame], rtol=0.01, atol=0.01)
    assert torch.equal(sample(conditions), everywhere)
    torch.testing.assert_close(sample(limited(conditions, "all")), everywhere, rtol=1e-4, atol=1e-3)


def test_two_pictures_for_the_first_and_the_last_frame(sample, limited):
    both = pictures(2)
    placed = sample(limited(with_control(both), "0, -1"))
    first, last = (sample(with_control(both[i : i + 1])) for i in (0, 1))
    torch.testing.assert_close(placed[0], first[0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(placed[-1], last[-1], rtol=1e-4, atol=1e-3)
    one = sample(limited(with_control(both[:1]), "0, -1"))
    torch.testing.assert_close(one[-1], first[-1], rtol=1e-4, atol=1e-3)


def test_a_strength_per_frame_is_that_of_the_controlnet(sample, limited):
    hint = pictures(1)
    conditions = with_control(hint)
    half = random_controlnet().copy().set_cond_hint(hint, 0.4)
    halved = sample((conditioning(1, control=half), conditioning(2, control=half)))
    some = sample(limited(conditions, "all=0.5, 0=1, 2=0"))
    torch.testing.assert_close(some[0], sample(conditions)[0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(some[1], halved[1], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(some[2], sample((conditioning(1), conditioning(2)))[2], rtol=1e-4, atol=1e-3)


def test_several_clips_in_one_batch(sample, limited):
    conditions = limited(with_control(pictures(FRAMES)), "1")
    twice = sample(conditions, 2 * FRAMES)
    everywhere, nowhere = (
        sample(with_control(pictures(FRAMES)), 2 * FRAMES),
        sample((conditioning(1), conditioning(2)), 2 * FRAMES),
    )
    for frame in range(2 * FRAMES):
        expected = everywhere if frame % FRAMES == 1 else nowhere
        torch.testing.assert_close(twice[frame], expected[frame], rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="frames is 4, which does not divide this batch of 6"):
        sample(conditions, 3)


def test_a_controlnet_before_it_keeps_all_frames(sample, limited):
    first = random_controlnet(7).copy().set_cond_hint(pictures(1, seed=9), 0.8)
    conditions = with_control(pictures(1), before=first)
    both, only_first = sample(conditions), sample((conditioning(1, control=first), conditioning(2, control=first)))
    some = sample(limited(conditions, "3"))
    torch.testing.assert_close(some[3], both[3], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(some[0], only_first[0], rtol=1e-4, atol=1e-3)


def test_the_conditions_still_run_in_one_batch(tiny_sd, sample, limited):
    from comfy.patcher_extension import WrappersMP

    chunks = []

    def look(executor, *args, **kwargs):
        chunks.append(len(args[5]["cond_or_uncond"]))
        return executor(*args, **kwargs)

    model = tiny_sd.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", look)
    sample(limited(with_control(pictures(2)), "0, -1"), model=model)
    assert set(chunks) == {2}


def test_context_windows_keep_each_frames_picture_and_strength(tiny_sd, sample, limited):
    """Windows that do not overlap, without a motion model: the same as the whole clip at once."""
    from comfy import context_windows

    handler = context_windows.IndexListContextHandler(
        context_windows.get_matching_context_schedule("standard_static"),
        context_windows.get_matching_fuse_method("flat"),
        context_length=4,
        context_overlap=0,
        causal_window_fix=False,
    )
    windowed = tiny_sd.clone()
    windowed.model_options["context_handler"] = handler
    conditions = limited(with_control(pictures(8)), "0, 5:7", 8)
    whole = sample(conditions, 8)
    torch.testing.assert_close(sample(conditions, 8, model=windowed), whole, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(sample(conditions, 8), whole, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_it_works_with_a_motion_model_which_carries_it_to_the_other_frames(comfy, tiny_sd, sample, limited, tmp_path):
    from stillmotion.model_patches import checkpoint
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion
    from stillmotion.model_patches.core.config import MotionConfig
    from stillmotion.model_patches.core.temporal import MotionModel

    torch.manual_seed(0)
    motion = MotionModel(MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, max_frames=8))
    weights = {k: v + 0.1 * torch.randn_like(v) for k, v in motion.state_dict().items()}
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, system="motion", config=motion.config.to_dict(), weights=weights)
    model = apply_motion(tiny_sd, load_motion(path), frames=FRAMES)
    still = sample((conditioning(1), conditioning(2)), model=model)
    some = sample(limited(with_control(pictures(2)), "0, -1"), model=model)
    assert not torch.allclose(some[1:3], still[1:3], rtol=0.01, atol=0.01)


def test_a_copy_and_its_parts_are_ComfyUIs(comfy, limited):
    from comfy.controlnet import ControlBase

    conditions = limited(with_control(pictures(2)), "0, -1")
    control = conditions[0][0][1]["control"]
    assert issubclass(type(control), ControlBase)
    assert control is conditions[1][0][1]["control"]
    assert len(control.get_models()) == 1
    again = control.copy()
    assert again.inner is not control.inner
    assert torch.equal(again.weights, control.weights)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0, -1", {0: 1.0, 7: 1.0}),
        ("4:6, -2:", {4: 1.0, 5: 1.0, 6: 1.0, 7: 1.0}),
        (":2=0.5", {0: 0.5, 1: 0.5}),
        ("all=0.25,0=1", {0: 1.0} | dict.fromkeys(range(1, 8), 0.25)),
    ],
)
def test_frames_are_named_as_in_the_tooltip(comfy, text, expected):
    from stillmotion.model_patches.comfy_host.conditions.control import parse_frames

    assert parse_frames(text, 8) == expected


@pytest.mark.parametrize("text", ["8", "-9", "first", "5:2", "1:2:3", "0=much"])
def test_invalid_frame_numbers_are_named(comfy, text):
    from stillmotion.model_patches.comfy_host.conditions.control import parse_frames

    with pytest.raises(ValueError, match=f"'{text}' is not a frame of a clip of 8; write frames 0 to 7"):
        parse_frames(text, 8)


def test_no_frames_no_controlnet_and_a_wrong_number_of_pictures_are_named(comfy, limited):
    with pytest.raises(ValueError, match="no frame is given"):
        limited(with_control(pictures(1)), " , ")
    with pytest.raises(ValueError, match="have no ControlNet; connect the node after Apply ControlNet"):
        limited((conditioning(1), conditioning(2)), "0")
    with pytest.raises(ValueError, match="3 images for 2 frames of a clip of 4; connect 1, 2 or 4"):
        limited(with_control(pictures(3)), "0, -1")
