"""HARIVO in a diffusers U-Net: identity of an untrained model, each part alone, gradients, features for training."""

from itertools import product
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.diffusers_host.harivo import Maps, attach, self_attentions
from stillmotion.model_patches.harivo.config import HarivoConfig, MappingConfig, TokenConfig
from stillmotion.model_patches.harivo.model import HarivoModel
from stillmotion.model_patches.harivo.tokens import softened

FRAMES, DIM = 4, 16
PARTS = ("temporal", "mapping", "tokens")
CONFIG = HarivoConfig(
    motion=MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, max_frames=8, mid_block=True),
    mapping=MappingConfig(width=16, heads=4, max_frames=8),
    tokens=TokenConfig(context_dim=DIM, context_length=7, frames=6),
)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=DIM,
        attention_head_dim=4,
        sample_size=8,
    ).eval()


def trained(**changes) -> Any:
    """A model with weights as after training: nothing is zero or neutral."""
    torch.manual_seed(1)
    model = HarivoModel(HarivoConfig.from_dict(CONFIG.to_dict() | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def inputs(clips=2, frames=FRAMES):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(clips * frames, 4, 8, 8, generator=generator)
    context = torch.randn(clips, 7, DIM, generator=generator).repeat_interleave(frames, dim=0)
    return x, torch.full((clips * frames,), 500), context


def attached(unet, model, **settings) -> Any:
    handle = attach(unet, model)
    for name, value in ({"frames": FRAMES} | settings).items():
        setattr(handle, name, value)
    return handle


@torch.no_grad()
def test_switched_off_and_removed_it_is_the_unet_bit_for_bit(unet):
    keys, still = list(unet.state_dict()), unet(*inputs()).sample
    handle = attached(unet, trained(), temporal=0, mapping=0, tokens=0)
    assert torch.equal(unet(*inputs()).sample, still)
    handle.temporal = handle.mapping = handle.tokens = 1.0
    assert not torch.allclose(unet(*inputs()).sample, still, atol=1e-2)
    handle.frames = 1
    assert torch.equal(unet(*inputs()).sample, still)
    handle.remove()
    assert torch.equal(unet(*inputs()).sample, still)
    assert list(unet.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


@torch.no_grad()
def test_a_fresh_model_without_tokens_changes_no_bit(unet):
    still = unet(*inputs()).sample
    attached(unet, HarivoModel(CONFIG), tokens=0)
    assert torch.equal(unet(*inputs()).sample, still)


@torch.no_grad()
def test_all_combinations_of_the_parts_are_different(unet):
    handle = attached(unet, trained())
    results = []
    for switches in product((0.0, 1.0), repeat=3):
        for name, value in zip(PARTS, switches, strict=True):
            setattr(handle, name, value)
        results.append(unet(*inputs()).sample)
    assert min((a - b).abs().max() for i, a in enumerate(results) for b in results[:i]) > 1e-3


@torch.no_grad()
def test_each_part_equals_doing_it_by_hand(unet):
    model, (x, t, context) = trained(), inputs()
    by_hand = unet(x + 0.5 * (model.mapping(x, FRAMES) - x), t, context).sample
    handle = attached(unet, model, temporal=0, tokens=0, mapping=0.5)
    torch.testing.assert_close(unet(x, t, context).sample, by_hand)
    handle.remove()
    prompts = context[::FRAMES]
    tokens = softened(model.tokens(prompts, FRAMES), prompts, 0.7)
    longer = torch.cat([context, tokens.flatten(0, 1)], dim=1)
    by_hand = unet(x, t, longer).sample
    attached(unet, model, temporal=0, mapping=0, tokens=0.7)
    torch.testing.assert_close(unet(x, t, encoder_hidden_states=context).sample, by_hand)
    torch.testing.assert_close(unet(x, timestep=t, encoder_hidden_states=context).sample, by_hand)


@torch.no_grad()
def test_tokens_made_once_serve_every_step(unet):
    handle, (x, t, context) = attached(unet, trained()), inputs()
    expected = unet(x, t, context).sample
    calls = []
    handle.model.tokens.register_forward_hook(lambda *_: calls.append(1))
    handle.prompt_tokens = handle.tokens_of(context[::FRAMES], FRAMES)
    for _ in range(3):
        assert torch.equal(unet(x, t, context).sample, expected)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="prompt_tokens are for 2 clips of 4 frames, but the U-Net got 1 of 4"):
        unet(x[:FRAMES], t[:FRAMES], context[:FRAMES])


@torch.no_grad()
def test_clips_in_one_batch_do_not_see_each_other(unet):
    attached(unet, trained())
    x, t, context = inputs(clips=3)
    together = unet(x, t, context).sample
    for clip in torch.arange(3 * FRAMES).chunk(3):
        torch.testing.assert_close(together[clip], unet(x[clip], t[clip], context[clip]).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_output_features_and_maps_reach_the_trained_parts(unet, checkpointing):
    unet.requires_grad_(False)
    if checkpointing:
        unet.train()
        unet.enable_gradient_checkpointing()
    model = trained()
    handle = attached(unet, model, keep_middle=True, keep_maps=Maps())
    gradients = {}
    for name in ("output", "middle", "maps"):
        model.zero_grad()
        output = unet(*inputs()).sample
        looked_at = {
            "output": output,
            "middle": handle.middle,
            "maps": sum(m.sum(2).var() for m in handle.maps.values()),
        }
        looked_at[name].square().mean().backward()
        gradients[name] = {k for k, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert len(handle.maps) == len(self_attentions(unet))
    everything = {name for name, _ in model.named_parameters()}
    assert gradients["output"] == everything
    assert gradients["middle"] == {k for k in everything if not k.startswith("temporal.up_blocks")}
    # the last map is computed before the modules of the last layers
    assert {k for k in everything if ".down_blocks." in k or k.startswith(("mapping", "tokens"))} <= gradients["maps"]
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_gradient_checkpointing_gives_the_same_gradients(unet):
    unet.requires_grad_(False)
    model = trained()
    handle = attached(
        unet, model, keep_middle=True, keep_maps=Maps(reduce=lambda m, layer, layers: m.var() * layer / layers)
    )
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            unet.train()
            unet.enable_gradient_checkpointing()
        model.zero_grad()
        loss = unet(*inputs()).sample.square().mean() + handle.middle.square().mean() + sum(handle.maps.values()) * 1e3
        loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_the_middle_feature_is_the_output_of_the_middle_block(unet):
    handle = attached(unet, trained())
    handle.keep_middle = True
    outputs: list[Any] = []
    unet.mid_block.register_forward_hook(lambda _m, _a, output: outputs.append(output))
    unet(*inputs())
    assert torch.equal(handle.middle, outputs[0])
    assert handle.middle.shape == (2 * FRAMES, 64, 4, 4)
    handle.keep_middle = False
    unet(*inputs())
    assert handle.middle is None


@torch.no_grad()
def test_the_maps_are_those_of_the_attention_that_ran(unet):
    """The map times the values, through the output layer, equals the output of the layer."""
    handle = attached(unet, trained(), keep_maps=Maps(queries=None, heads="all"))
    layers, maps = self_attentions(unet), {}
    for number, layer in enumerate(layers, 1):
        layer.register_forward_hook(lambda m, args, output, n=number: maps.update({n: (m, args[0], output)}))
    plain = unet(*inputs()).sample
    assert list(handle.maps) == list(range(1, len(layers) + 1))
    assert len(layers) == 2
    for number, (layer, x, output) in maps.items():
        v = layer.to_v(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        again = layer.to_out[0]((handle.maps[number] @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(again, output)
    whole = dict(handle.maps)
    handle.keep_maps = Maps(queries=None)
    assert torch.equal(unet(*inputs()).sample, plain)
    for number, each in handle.maps.items():
        torch.testing.assert_close(each, whole[number].mean(1, keepdim=True))
    handle.keep_maps = Maps(queries=5, heads="all")
    unet(*inputs())
    for number, each in handle.maps.items():
        pixels = whole[number].shape[-1]
        places = torch.linspace(0, pixels - 1, 5).round().long()
        torch.testing.assert_close(each, whole[number][:, :, places])
    handle.keep_maps = None
    unet(*inputs())
    assert handle.maps == {}


def test_errors_come_before_work_and_name_the_numbers(unet):
    x, t, context = inputs()
    handle = attach(unet, trained())
    with pytest.raises(ValueError, match=r"set handle\.frames"):
        unet(x, t, context)
    handle.frames = 3
    with pytest.raises(ValueError, match="8 images cannot be divided into clips of 3 frames"):
        unet(x, t, context)
    handle.remove()
    handle = attached(unet, trained(mapping=None, tokens=None))
    assert (handle.temporal, handle.mapping, handle.tokens) == (1.0, 0.0, 0.0)
    handle.mapping = 0.5
    with pytest.raises(ValueError, match=r"mapping is 0\.5, but this model has no mapping"):
        unet(x, t, context)
    with pytest.raises(ValueError, match="it has no frame-wise tokens"):
        handle.tokens_of(context, FRAMES)
    handle.remove()
    with pytest.raises(ValueError, match="trained on text tokens of width 8, but this U-Net takes 16"):
        attach(unet, trained(tokens={"context_dim": 8}))
    with pytest.raises(ValueError, match="latents with 9 channels, but this U-Net takes 4"):
        attach(unet, trained(mapping={"channels": 9}))
    with pytest.raises(ValueError, match="built for a U-Net with block channels"):
        attach(unet, trained(motion=CONFIG.motion.to_dict() | {"block_channels": [32, 96]}))
    with pytest.raises(ValueError, match="heads is 'max'"):
        Maps(heads="max")
    with pytest.raises(ValueError, match="queries is 0"):
        Maps(queries=0)


@torch.no_grad()
@pytest.mark.slow
def test_it_runs_in_the_pocket(root):
    from stillmotion.model_patches.diffusers_host.pocket import load_pocket

    pocket = load_pocket(root / "pocket" / "pocket.safetensors")
    config = HarivoConfig(
        motion=MotionConfig(block_channels=(64, 128, 128), layers_per_block=1, max_frames=16),
        mapping=MappingConfig(max_frames=16),
        tokens=TokenConfig(context_dim=128, frames=16),
    )
    x = torch.randn(16, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    context = torch.randn(1, 77, 128, generator=torch.Generator().manual_seed(1)).expand(16, -1, -1)
    still = pocket.unet(x, 500, context).sample
    handle: Any = attach(pocket.unet, HarivoModel(config))
    handle.frames, handle.tokens = 16, 0.0
    assert torch.equal(pocket.unet(x, 500, context).sample, still)
    handle.tokens, handle.keep_maps, handle.keep_middle = 1.0, Maps(), True
    assert not torch.equal(pocket.unet(x, 500, context).sample, still)
    assert len(handle.maps) == 4
    assert handle.middle.shape == (16, 128, 4, 4)
