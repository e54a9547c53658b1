"""ART-V in a diffusers U-Net: positions of its parts, drops per sample, removal, training."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from stillmotion.model_patches.artv.config import ArtvConfig
from stillmotion.model_patches.artv.model import ArtvModel
from stillmotion.model_patches.core.levels import alpha_bars
from stillmotion.model_patches.diffusers_host.artv import ArtvUNet

SIZES = {
    "attention inside, two layers": {"attention": (False, True), "layers_per_block": 2},
    "attention outside, one layer": {"attention": (True, False), "layers_per_block": 1},
}


@pytest.fixture(params=SIZES)
def parts(request):
    config = ArtvConfig(
        block_channels=(32, 64),
        heads=(4, 4),
        mask_channels=(16, 32),
        mask_heads=(2, 2),
        context_dim=16,
        **SIZES[request.param],
    )
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
    torch.manual_seed(1)
    model = ArtvModel(replace(config, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if not fresh:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


def inputs(n=2, level=200) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(n, *shape, generator=generator)

    shape = (4, 8, 8)
    return {
        "y_t": draw(*shape),
        "t": torch.full((n,), 500),
        "context": draw(5, 16),
        "references": draw(2, *shape),
        "anchor": draw(*shape),
        "noise": draw(3, *shape),
        "level": torch.full((n,), level),
    }


def plain(unet, frame_inputs):
    return unet(frame_inputs["y_t"], frame_inputs["t"], frame_inputs["context"]).sample


@torch.no_grad()
def test_a_fresh_model_is_the_image_model_bit_for_bit_where_nothing_is_given(parts):
    unet, config = parts
    frame_inputs = inputs()
    still = plain(unet, frame_inputs)
    artv = ArtvUNet(unet, model_of(config, fresh=True))
    every = torch.tensor([True, True])
    eps, m, dynamic = artv(**frame_inputs, no_references=every, no_anchor=every)
    assert torch.equal(eps, still)
    assert torch.equal(dynamic, still)
    assert not m.any()
    assert torch.equal(artv(**inputs(level=0))[2], still)  # the adapter and the blocks add nothing
    eps, m, dynamic = artv(**frame_inputs)
    assert bool((m == 0.5).all())
    assert not torch.equal(eps, dynamic)


@torch.no_grad()
def test_each_sample_goes_without_its_own(parts):
    unet, config = parts
    artv, frame_inputs = ArtvUNet(unet, model_of(config)), inputs(4)
    drops = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    together = artv(**frame_inputs, no_references=drops[:, 0], no_anchor=drops[:, 1])
    for i, (references, anchor) in enumerate(drops):
        one = {name: value[i : i + 1] for name, value in frame_inputs.items()}
        alone = artv(**one, no_references=references[None], no_anchor=anchor[None])
        for a, b in zip(together, alone, strict=True):
            assert (a[i] - b[0]).abs().max() < 1e-4
    whole = artv(**frame_inputs)
    assert (whole[0][1:] - together[0][1:]).flatten(1).abs().amax(1).min() > 1e-3
    assert together[1][1].max() == together[1][3].max() == 0


@torch.no_grad()
def test_the_mask_network_runs_for_the_first_samples_that_are_asked_for(parts):
    unet, config = parts
    artv, frame_inputs = ArtvUNet(unet, model_of(config)), inputs(3)
    rows: list[int] = []
    watch = artv.model.mask.register_forward_hook(lambda network, args, output: rows.append(len(output)))
    whole = artv(**frame_inputs)
    for masked in (0, 2):
        eps, m, dynamic = artv(**frame_inputs, masked=masked)
        assert torch.equal(dynamic, whole[2])
        torch.testing.assert_close(eps[:masked], whole[0][:masked])
        torch.testing.assert_close(m[:masked], whole[1][:masked])
        assert torch.equal(eps[masked:], dynamic[masked:])
        assert m[masked:].abs().max() == 0
    assert rows == [3, 2]
    watch.remove()


@torch.no_grad()
def test_removing_it_leaves_the_u_net_as_it_was(parts):
    unet, config = parts
    before, frame_inputs = {k: v.clone() for k, v in unet.state_dict().items()}, inputs()
    still = plain(unet, frame_inputs)
    artv = ArtvUNet(unet, model_of(config))
    assert (artv(**frame_inputs)[2] - still).abs().max() > 0.01
    assert torch.equal(plain(unet, frame_inputs), still)  # called by itself, the U-Net is the image model
    artv.remove()
    assert torch.equal(plain(unet, frame_inputs), still)
    assert all(torch.equal(unet.state_dict()[k], v) for k, v in before.items())
    with pytest.raises(RuntimeError, match="only 0 of"):
        artv(**frame_inputs)


def test_every_part_learns_and_the_u_net_does_not(parts):
    unet, config = parts
    unet.requires_grad_(False)
    model = model_of(config)
    artv, frame_inputs = ArtvUNet(unet, model), inputs()
    eps, _, _ = artv(**frame_inputs)
    eps.square().mean().backward()
    untrained = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # keys of a self-attention with a nearly constant softmax have tiny gradients, but not 0
    assert not untrained
    assert all(p.grad is None for p in unet.parameters())


def test_gradient_checkpointing_changes_no_gradient(parts):
    unet, config = parts
    gradients = []
    for checkpointing in (False, True):
        model = model_of(config)
        unet.train()  # diffusers uses checkpointing only in training mode; these sizes have no dropout
        if checkpointing:
            unet.enable_gradient_checkpointing()
        artv = ArtvUNet(unet, model)
        artv(**inputs())[0].square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
        artv.remove()
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_a_u_net_that_predicts_v_gives_the_same_noise(parts):
    unet, config = parts
    frame_inputs, model = inputs(), model_of(config)
    artv = ArtvUNet(unet, model)
    eps = artv(**frame_inputs)[0]
    artv.remove()
    abar = alpha_bars()[500].float()

    def rewritten(_unet, _args, output):
        output.sample = (output.sample - (1 - abar).sqrt() * frame_inputs["y_t"]) / abar.sqrt()
        return output

    hook = unet.register_forward_hook(rewritten)
    v = ArtvUNet(unet, model, prediction="v")(**frame_inputs)[0]
    hook.remove()
    assert (v - eps).abs().max() < 1e-4


def test_other_u_nets_are_refused_with_the_difference(parts):
    unet, config = parts
    wrong = {
        "block channels": {"block_channels": (32, 96)},
        "layers per block": {"layers_per_block": 3},
        "attention": {"attention": config.attention[::-1]},
        "text width": {"context_dim": 24},
        "latent channels": {"latent_channels": 8},
    }
    for name, changes in wrong.items():
        with pytest.raises(ValueError, match=f"built for a U-Net with {name}"):
            ArtvUNet(unet, model_of(config, **changes))
    with pytest.raises(ValueError, match="the U-Net predicts 'x0'; choose one of eps, v"):
        ArtvUNet(unet, model_of(config), prediction="x0")
