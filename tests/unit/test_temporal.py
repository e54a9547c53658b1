"""Properties of AnimateDiff's temporal modules."""

from typing import Any

import pytest
import torch

from stillmotion.model_patches.core import temporal
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.slots import MIDDLE, Slot, slots
from stillmotion.model_patches.core.temporal import MotionModel, MotionModule, in_parts, sdpa, sinusoid


def trained(channels=32, *, heads=4, max_frames: int | None = 8, group_norm="per_frame"):
    """A module with weights as after training: nothing is zero or neutral."""
    torch.manual_seed(0)
    module = MotionModule(channels, heads=heads, max_frames=max_frames, group_norm=group_norm)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


def frames_of(clips=2, frames=4, channels=32, height=3, width=5):
    return torch.randn(clips * frames, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_a_fresh_module_is_the_identity_bit_for_bit():
    x = frames_of()
    assert torch.equal(MotionModule(32, heads=4)(x, 4), x)


def test_frames_mix_and_pixels_mix_only_through_group_norm():
    tokens = torch.randn(6, 4, 32, requires_grad=True)  # (B, f, c), the input after the norm
    trained().temporal_transformer.transformer_blocks[0](tokens)[2, 1].sum().backward()
    assert tokens.grad is not None
    reach = tokens.grad.abs().sum(-1) > 0
    assert reach[2].all()
    assert not reach[[0, 1, 3, 4, 5]].any()


@pytest.mark.parametrize("group_norm", ["per_frame", "per_clip"])
def test_clips_and_frames_keep_their_places(group_norm):
    """A clip gives the same result alone and in a batch, and swapping clips swaps the updates."""
    module, x = trained(group_norm=group_norm), frames_of(clips=3)
    y = module(x, 4)
    torch.testing.assert_close(module(x[4:8], 4), y[4:8])
    swapped = x.unflatten(0, (3, 4))[[2, 0, 1]].flatten(0, 1)
    torch.testing.assert_close(module(swapped, 4), y.unflatten(0, (3, 4))[[2, 0, 1]].flatten(0, 1))


def test_without_positions_the_order_of_frames_does_not_matter_and_with_them_it_does():
    x, order = frames_of(clips=1), [2, 0, 3, 1]
    blind, sighted = trained(max_frames=None), trained()
    torch.testing.assert_close(blind(x[order], 4), blind(x, 4)[order])
    assert not torch.allclose(sighted(x[order], 4), sighted(x, 4)[order], atol=1e-3)


def test_group_norm_per_frame_ignores_the_contrast_of_other_frames():
    """Scaling one frame changes nothing with a norm per frame, and all frames with a norm per clip."""
    x = frames_of(clips=1)
    louder = x.clone()
    louder[1] *= 5
    for rule, same in (("per_frame", True), ("per_clip", False)):
        module = trained(group_norm=rule)
        assert torch.allclose(module.update(louder, 4), module.update(x, 4), atol=1e-4) is same


def test_attention_is_the_softmax_average():
    q, k, v = torch.randn(3, 2, 5, 12, generator=torch.Generator().manual_seed(0)).unbind()
    heads = [
        ((q[..., i : i + 4] @ k[..., i : i + 4].mT) / 2).softmax(-1) @ v[..., i : i + 4]  # sqrt(d) = 2
        for i in (0, 4, 8)
    ]
    torch.testing.assert_close(sdpa(q, k, v, 3), torch.cat(heads, dim=-1))


def test_the_host_gives_layers_and_attention():
    calls = []

    class Ops:
        Linear, GroupNorm, LayerNorm = torch.nn.Linear, torch.nn.GroupNorm, torch.nn.LayerNorm

    def attention(q, k, v, heads, options):
        calls.append((tuple(q.shape), heads, options))
        return sdpa(q, k, v, heads)

    MotionModule(32, heads=4, ops=Ops, attention=attention).update(frames_of(), 4, "options of the host")
    assert calls == [((30, 4, 32), 4, "options of the host")] * 2  # 2 clips of 3 x 5 pixels


def test_many_pixels_in_parts_are_the_same(monkeypatch):
    module, x = trained(), frames_of()
    whole = module(x, 4)
    sizes = []
    block: Any = module.temporal_transformer.transformer_blocks[0]
    block.ff.net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    monkeypatch.setattr(temporal, "CPU_PART", 7 * 4 * 8 * 32)  # seven pixels of four frames, eight times 32 channels
    torch.testing.assert_close(module(x, 4), whole)
    assert sizes == [7, 7, 7, 7, 2]  # of 2 clips of 3 x 5 pixels


@pytest.mark.parametrize(
    ("pixels", "frames", "channels", "part"),
    [(4096, 16, 320, 64), (100, 16, 1280, 16), (3, 4096, 1280, 1), (30, 16, 1280, 16), (10, 16, 1280, 10)],
)
def test_a_part_holds_ten_megabytes_or_one_pixel(pixels, frames, channels, part):
    """In the widest tensor, that of the gated feed-forward, which has 2 x 4 numbers for each number of the input."""
    sizes = []

    def run(tokens):
        sizes.append(len(tokens))
        return tokens[..., :1]

    tokens = torch.zeros(1, 1, 1).expand(pixels, frames, channels)  # needs no memory
    assert len(in_parts(run, tokens)) == pixels
    assert set(sizes[:-1]) <= {part}
    assert sizes[-1] == (pixels % part or part)
    assert 4 * 8 * part * frames * channels <= 10.5e6 or part == 1


def test_the_default_sizes_are_those_of_animatediff():
    module: Any = MotionModule(64)
    (block,) = module.temporal_transformer.transformer_blocks
    assert [attention.heads for attention in block.attention_blocks] == [8, 8]
    assert module.max_frames == 32


def test_positions_are_sines_of_falling_frequency():
    table = sinusoid(16, 8)
    assert table[0].tolist() == [0, 1] * 4
    torch.testing.assert_close(table[:, 0], torch.arange(16.0).sin())
    torch.testing.assert_close(table[:, 7], (torch.arange(16.0) / 1000).cos())


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (0, "frames is 0"),
        (3, "batch of 8 images cannot be divided into clips of 3 frames"),
        (8, "a clip has 8 frames, but this motion model knows positions for only 6"),
    ],
)
def test_frames_that_do_not_fit_are_named(frames, message):
    with pytest.raises(ValueError, match=message):
        trained(max_frames=6)(frames_of(), frames)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"block_channels": ()}, "block_channels is empty"),
        ({"block_channels": (48,)}, "48 channels are not a multiple of 32"),
        ({"block_channels": (32, 96), "heads": 5}, "5 heads do not divide 32 channels"),
        ({"block_channels": (32,), "layers_per_block": 0}, "layers_per_block is 0"),
        ({"block_channels": (32,), "max_frames": 0}, "max_frames is 0"),
        ({"block_channels": (32,), "group_norm": "none"}, "group_norm is 'none'; choose one of per_frame, per_clip"),
        ({"block_channels": (32,), "beta_schedule": "linear"}, "needs beta_start and beta_end"),
    ],
)
def test_sizes_that_cannot_be_built_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        MotionConfig(**sizes)


def test_a_config_survives_a_header_and_refuses_unknown_keys():
    config = MotionConfig(block_channels=(64, 128), heads=4, beta_schedule="linear", beta_start=0.1, beta_end=0.2)
    assert MotionConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="unknown setting colour"):
        MotionConfig.from_dict(config.to_dict() | {"colour": 1})


def test_slots_run_from_the_outside_in_and_back():
    config = MotionConfig(block_channels=(32, 64), layers_per_block=1, mid_block=True, heads=4)
    assert list(slots(config).items()) == [
        (Slot("down", 0, 0), 32),
        (Slot("down", 1, 0), 64),
        (MIDDLE, 64),
        (Slot("up", 0, 0), 64),
        (Slot("up", 0, 1), 64),
        (Slot("up", 1, 0), 32),
        (Slot("up", 1, 1), 32),
    ]
    motion = MotionModel(config)
    assert motion.module(Slot("up", 1, 0)) is motion.get_submodule("up_blocks.1.motion_modules.0")
    assert list(motion.modules_by_slot()) == list(slots(config))
    assert {str(MIDDLE), str(Slot("up", 1, 0))} == {"mid", "up block 1, layer 0"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(dtype):
    module, x = trained(), frames_of()
    exact = module(x, 4)
    half = module.to(dtype)(x.to(dtype), 4)
    assert half.dtype == dtype
    assert (half.float() - exact).abs().max() < 0.02 * exact.abs().max()
