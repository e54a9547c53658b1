"""The motion model in a diffusers U-Net: equal to diffusers' UNetMotionModel, the identity if untrained, trainable."""

import copy
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import MotionAdapter, UNetMotionModel

from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel
from stillmotion.model_patches.diffusers_host.motion import attach
from stillmotion.model_patches.layouts import to_diffusers

FRAMES = 4
SIZES = {
    "attention everywhere but the innermost, two layers": (
        ("CrossAttnDownBlock2D", "DownBlock2D"),
        ("UpBlock2D", "CrossAttnUpBlock2D"),
        {"block_channels": (32, 64), "layers_per_block": 2, "mid_block": True},
    ),
    "outermost without attention, one layer": (
        ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        {"block_channels": (32, 64, 96), "layers_per_block": 1, "mid_block": False},
    ),
}


@pytest.fixture(params=SIZES)
def parts(request):
    down, up, sizes = SIZES[request.param]
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=sizes["block_channels"],
        layers_per_block=sizes["layers_per_block"],
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=16,
        attention_head_dim=4,
        sample_size=8,
    ).eval()
    return unet, MotionConfig(heads=4, max_frames=8, **sizes)


def randomised(motion):
    """Weights as after training: no projection is zero, no norm is neutral."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in motion.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return motion


def inputs(clips=2, frames=FRAMES):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(clips * frames, 4, 8, 8, generator=generator)
    context = torch.randn(clips, 5, 16, generator=generator).repeat_interleave(frames, dim=0)
    return x, torch.full((clips * frames,), 500), context


def with_frames(handle, frames):
    handle.frames = frames
    return handle


@torch.no_grad()
def test_it_equals_diffusers_own_motion_unet(parts):
    unet, config = parts
    motion = randomised(MotionModel(MotionConfig(**config.to_dict() | {"group_norm": "per_clip"})))
    adapter = MotionAdapter(
        block_out_channels=config.block_channels,
        motion_layers_per_block=config.layers_per_block,
        motion_num_attention_heads=config.heads,
        motion_max_seq_length=config.max_frames,
        use_motion_mid_block=config.mid_block,
    )
    adapter.load_state_dict(to_diffusers(motion.state_dict()))
    x, t, context = inputs()
    clips = x.unflatten(0, (-1, FRAMES)).transpose(1, 2)  # (b, c, f, h, w)
    reference: Any = UNetMotionModel.from_unet2d(unet, adapter)
    reference.eval()
    expected = reference(clips, 500, context, return_dict=False)[0].transpose(1, 2).flatten(0, 1)
    still = unet(x, t, context, return_dict=False)[0]
    handle = with_frames(attach(unet, motion), FRAMES)
    output = unet(x, t, context, return_dict=False)[0]
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=0)
    assert (output - still).abs().max() > 0.01
    assert handle.calls == len(motion.modules_by_slot())


@torch.no_grad()
def test_a_fresh_motion_model_changes_no_bit_and_removing_a_trained_one_restores_every_bit(parts):
    unet, config = parts
    keys, still = list(unet.state_dict()), unet(*inputs()).sample
    handle = with_frames(attach(unet, MotionModel(config)), FRAMES)
    assert torch.equal(unet(*inputs()).sample, still)
    handle.remove()
    trained = with_frames(attach(unet, randomised(MotionModel(config))), FRAMES)
    assert not torch.equal(unet(*inputs()).sample, still)
    assert list(unet.state_dict()) == keys
    trained.remove()
    assert torch.equal(unet(*inputs()).sample, still)
    assert not unet._forward_hooks
    assert not any(module._forward_hooks for module in unet.modules())


@torch.no_grad()
def test_clips_in_one_batch_do_not_see_each_other(parts):
    unet, config = parts
    with_frames(attach(unet, randomised(MotionModel(config))), FRAMES)
    x, t, context = inputs(clips=3)
    together = unet(x, t, context).sample
    for clip in torch.arange(3 * FRAMES).chunk(3):
        torch.testing.assert_close(together[clip], unet(x[clip], t[clip], context[clip]).sample, atol=1e-5, rtol=0)


@torch.no_grad()
def test_one_frame_passes_through(parts):
    unet, config = parts
    still = unet(*inputs()).sample
    with_frames(attach(unet, randomised(MotionModel(config))), 1)
    assert torch.equal(unet(*inputs()).sample, still)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_motion_weight_and_no_spatial_one(parts, checkpointing):
    unet, config = parts
    unet.requires_grad_(False)
    if checkpointing:
        unet.train()
        unet.enable_gradient_checkpointing()
    motion = randomised(MotionModel(config))
    with_frames(attach(unet, motion), FRAMES)
    unet(*inputs()).sample.square().mean().backward()
    grads = {name: parameter.grad for name, parameter in motion.named_parameters()}
    without = [name for name, grad in grads.items() if grad is None or not grad.abs().sum() > 0]
    # A key bias shifts all scores of a query alike; AnimateDiff has no key bias, so every weight has an effect.
    assert without == []
    assert all(parameter.grad is None for parameter in unet.parameters())


@pytest.mark.slow
def test_a_fresh_model_learns_through_its_zero_projection(parts):
    unet, config = parts
    unet.requires_grad_(False)
    motion = MotionModel(config)
    with_frames(attach(unet, motion), FRAMES)
    optimiser = torch.optim.Adam(motion.parameters(), lr=1e-3)
    target = torch.zeros(inputs()[0].shape)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.mse_loss(unet(*inputs()).sample, target)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]


def test_errors_come_before_work_and_name_the_numbers(parts):
    unet, config = parts
    handle = attach(unet, MotionModel(config))
    with pytest.raises(ValueError, match=r"set handle\.frames"):
        unet(*inputs())
    handle.frames = 3
    with pytest.raises(ValueError, match="8 images cannot be divided into clips of 3 frames"):
        unet(*inputs())
    handle.frames = 16
    x, t, context = inputs(clips=1, frames=16)
    with pytest.raises(ValueError, match=r"a clip has 16 frames.*8 frames"):
        unet(x, t, context)
    handle.remove()
    wrong = MotionConfig(**config.to_dict() | {"block_channels": [320, 640, 1280, 1280], "heads": 8})
    with torch.device("meta"):
        foreign = MotionModel(wrong)
    with pytest.raises(ValueError, match="built for a U-Net with block channels"):
        attach(unet, foreign)


def test_a_layer_that_was_exchanged_after_attaching_is_an_error_not_a_still_image(parts):
    unet, config = parts
    block = unet.down_blocks[0]
    layers = getattr(block, "attentions", block.resnets)
    other = copy.deepcopy(layers[0])
    with_frames(attach(unet, MotionModel(config)), FRAMES)
    layers[0] = other
    with pytest.raises(RuntimeError, match="were called in this forward"):
        unet(*inputs())
