"""The VidRD model in a diffusers U-Net: positions of its layers, their removal, and training."""

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from stillmotion.model_patches.diffusers_host.vidrd import attach
from stillmotion.model_patches.vidrd.config import VidrdConfig
from stillmotion.model_patches.vidrd.model import VidrdModel, is_temporal

FRAMES = 4
SIZES = {
    "attention inside, two layers": {"block_channels": (32, 64), "attention": (False, True), "layers_per_block": 2},
    "attention outside, one layer": {"block_channels": (32, 64), "attention": (True, False), "layers_per_block": 1},
}


@pytest.fixture(params=SIZES)
def parts(request):
    config = VidrdConfig(heads=(4, 4), context_dim=16, dropout=0.0, **SIZES[request.param])
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)),
        cross_attention_dim=16,
        attention_head_dim=4,
        sample_size=8,
    ).eval()
    return unet, config


def model_of(config, *, fresh=False, **changes):
    model = VidrdModel(VidrdConfig(**config.to_dict() | changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not fresh:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def inputs(clips=2, frames=FRAMES):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(clips * frames, 4, 8, 8, generator=generator)
    context = torch.randn(clips, 5, 16, generator=generator).repeat_interleave(frames, dim=0)
    return x, torch.full((clips * frames,), 500), context


def run(unet, handle, frames=FRAMES, data=None):
    handle.frames = frames
    return unet(*(data or inputs())).sample


@torch.no_grad()
def test_a_fresh_branch_model_changes_no_bit_and_the_published_embedding_does(parts):
    unet, config = parts
    still = unet(*inputs()).sample
    handle = attach(unet, model_of(config, fresh=True, spatial=False, embedding="branch"))
    assert torch.equal(run(unet, handle), still)
    handle.remove()
    handle = attach(unet, model_of(config, fresh=True, spatial=False))
    assert (run(unet, handle) - still).abs().max() > 1e-3


@torch.no_grad()
def test_removing_restores_every_bit_of_a_model_with_fine_tuned_blocks(parts):
    unet, config = parts
    before, still = {k: v.clone() for k, v in unet.state_dict().items()}, unet(*inputs()).sample
    handle = attach(unet, model_of(config))
    moving = run(unet, handle)
    assert (moving - still).abs().max() > 0.01
    assert handle.calls == len(handle.motion.modules_by_slot())
    image = run(unet, handle, frames=1)  # the fine-tuned image model, each frame separately
    assert (image - still).abs().max() > 0.01
    assert (image - moving).abs().max() > 0.01
    handle.remove()
    assert all(torch.equal(unet.state_dict()[k], v) for k, v in before.items())
    assert torch.equal(unet(*inputs()).sample, still)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


@torch.no_grad()
def test_the_layers_sit_where_the_paper_has_them(parts):
    """Compared with a plain loop that makes the same change inside a transformer block."""
    unet, config = parts
    handle = attach(unet, model_of(config, spatial=False))
    slot, module = next((s, m) for s, m in handle.motion.modules_by_slot().items() if s.place == "attended")
    side = getattr(unet, f"{slot.part}_blocks")[slot.block] if slot.part != "mid" else unet.mid_block
    block = side.attentions[slot.layer].transformer_blocks[0]
    _, _, context = inputs()
    x = torch.randn(2 * FRAMES, 6, block.norm1.normalized_shape[0], generator=torch.Generator().manual_seed(3))
    handle.frames = FRAMES
    output = block(x, encoder_hidden_states=context)
    handle.remove()
    h = x + block.attn1(block.norm1(x))
    h = h + block.attn2(block.norm2(h), encoder_hidden_states=context)
    h = module(h, FRAMES)
    h = h + block.ff(block.norm3(h))
    torch.testing.assert_close(output, h, atol=1e-5, rtol=0)


@torch.no_grad()
def test_one_frame_and_strength_zero_pass_through(parts):
    unet, config = parts
    still = unet(*inputs()).sample
    handle = attach(unet, model_of(config, spatial=False))
    assert torch.equal(run(unet, handle, frames=1), still)
    handle.strength = 0.0
    assert torch.equal(run(unet, handle), still)


@torch.no_grad()
def test_clips_in_one_batch_do_not_see_each_other(parts):
    unet, config = parts
    handle = attach(unet, model_of(config))
    x, t, context = inputs()
    together = run(unet, handle)
    for clip in torch.arange(2 * FRAMES).chunk(2):
        alone = run(unet, handle, data=(x[clip], t[clip], context[clip]))
        torch.testing.assert_close(together[clip], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_temporal_weight(parts, checkpointing):
    unet, config = parts
    unet.requires_grad_(False)
    if checkpointing:
        unet.train()
        unet.enable_gradient_checkpointing()
    model = model_of(config, spatial=False)
    run(unet, attach(unet, model)).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_other_bases_are_refused_with_the_difference(parts):
    unet, config = parts
    with pytest.raises(ValueError, match=r"text width 24, but this one has 16"):
        attach(unet, model_of(config, context_dim=24))
    with pytest.raises(ValueError, match=r"block channels \(32, 96\)"):
        attach(unet, model_of(config, block_channels=(32, 96)))
    with pytest.raises(ValueError, match=r"attention \(True, True\)"):
        attach(unet, model_of(config, attention=(True, True)))
    handle = attach(unet, model_of(config))
    with pytest.raises(ValueError, match=r"set handle\.frames"):
        unet(*inputs())
    handle.frames = 3
    with pytest.raises(ValueError, match="8 images cannot be divided into clips of 3 frames"):
        unet(*inputs())


def test_the_model_that_is_trained_is_temporal_and_spatial(parts):
    _, config = parts
    keys = list(model_of(config).state_dict())
    assert any(is_temporal(k) for k in keys)
    assert any(not is_temporal(k) for k in keys)
    assert all(is_temporal(k) for k in model_of(config, spatial=False).state_dict())
