"""The branch: its sizes, no effect if untrained, equality with diffusers' ControlNet, and the inputs of each frame."""

from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import nn

from stillmotion.model_patches.assembly import dreamvideo_model, retention_branch
from stillmotion.model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig
from stillmotion.model_patches.dreamvideo.retention import RetentionBranch
from stillmotion.model_patches.vidrd.config import VidrdConfig

SMALL: dict[str, Any] = {
    "block_channels": (32, 64),
    "attention": (False, True),
    "heads": (4, 8),
    "layers_per_block": 1,
    "context_dim": 16,
}
LAYERS = VidrdConfig(**SMALL, conv_layers=2, embedding="branch")
SD21 = VidrdConfig(block_channels=(320, 640, 1280, 1280), attention=(True, True, True, False), heads=(5, 10, 20, 20))


def config_of(**changes):
    branch = RetentionConfig(**{**SMALL, "hint_channels": (16, 32, 32), **changes})
    return DreamVideoConfig(branch=branch, layers=None if branch.temporal == "none" else LAYERS.to_dict())


def randomised(module, seed=0):
    """Random weights, because zero convolutions would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.1 * noise if weight.ndim < 2 else noise / weight[0].numel() ** 0.5)
    return module.eval()


def inputs(n=4, side=8, s=4):
    g = torch.Generator().manual_seed(1)
    x, context = torch.randn(n, 4, side, side, generator=g), torch.randn(n, 7, 16, generator=g)
    return x, torch.full((n,), 500), context, torch.rand(1, 3, side * s, side * s, generator=g)


def count(module):
    return sum(p.numel() for p in (module if isinstance(module, list) else module.parameters()))


def outputs(branch, x, t, context, image, frames):
    residuals = branch(x, t, context, branch.encode(image), frames)
    return [*residuals.down, residuals.mid]


def test_the_branch_of_stable_diffusion_2_counts_as_the_paper_prints():
    with torch.device("meta"):
        config = DreamVideoConfig(branch=RetentionConfig(), layers=SD21.to_dict(), motion=True)
        model = dreamvideo_model(config)
    assert model.motion is not None
    trained = count(model.branch.trained())
    assert round(trained / 1e6, 2) == 364.23
    temporal = sum(p.numel() for k, p in model.motion.named_parameters() if ".temp_" in k)
    assert round((trained + temporal) / 1e6, 2) == 680.72  # the paper prints 680M
    assert round(count(model.branch.controlnet_cond_embedding) / 1e6, 2) == 1.09
    assert len(model.branch.controlnet_down_blocks) == 12


def test_an_unknown_choice_and_temporal_layers_of_another_unet_are_named():
    with pytest.raises(ValueError, match="inject is 'sides'; choose one of skips, up_blocks"):
        RetentionConfig(**SMALL, inject="sides")
    with pytest.raises(ValueError, match="heads has 1 entries for 2 down blocks"):
        RetentionConfig(**{**SMALL, "heads": (4,)})
    with pytest.raises(ValueError, match="their sizes are missing in layers"):
        DreamVideoConfig(branch=RetentionConfig(**SMALL))
    with pytest.raises(ValueError, match=r"block_channels is \(32, 64\) in the branch and \(320, 640"):
        retention_branch(DreamVideoConfig(branch=RetentionConfig(**SMALL), layers=SD21.to_dict()))
    with pytest.raises(ValueError, match="unknown setting width"):
        DreamVideoConfig.from_dict({"branch": {"width": 3}})


def test_the_record_goes_into_a_header_and_comes_back():
    config = config_of(inject="up_blocks", image_range="signed")
    assert DreamVideoConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("inject", ["skips", "up_blocks"])
@pytest.mark.parametrize("temporal", ["frozen", "none"])
def test_a_fresh_branch_adds_nothing_at_all(inject, temporal):
    branch = retention_branch(config_of(inject=inject, temporal=temporal))
    residuals = outputs(branch, *inputs(), frames=4)
    assert len(residuals) == {"skips": 5, "up_blocks": 3}[inject]
    assert all(torch.equal(x, torch.zeros_like(x)) for x in residuals)


@pytest.mark.parametrize("linear", [True, False])
def test_it_is_the_controlnet_of_diffusers(linear):
    """An independent implementation with the same weights, loaded without renaming."""
    branch = randomised(retention_branch(config_of(temporal="none", linear_projection=linear)))
    controlnet = ControlNetModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=(4, 8),
        use_linear_projection=linear,
        conditioning_embedding_out_channels=(16, 32, 32),
    ).eval()
    controlnet.load_state_dict(branch.state_dict(), strict=True)
    x, t, context, image = inputs()
    with torch.no_grad():
        down, mid = controlnet(x, t, context, controlnet_cond=image.expand(4, -1, -1, -1), return_dict=False)
        residuals = outputs(branch, x, t, context, image, frames=4)
    for a, b in zip(residuals, [*down, mid], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert b.std() > 0.01


def test_frames_see_each_other_through_frozen_layers_only():
    x, t, context, image = inputs()
    other = torch.cat([x[:3], x[3:] + 1])
    for temporal, mixes in (("frozen", True), ("none", False)):
        branch = randomised(retention_branch(config_of(temporal=temporal)))
        with torch.no_grad():
            a, b = (outputs(branch, z, t, context, image, frames=4) for z in (x, other))
            alone = outputs(branch, other, t, context, image, frames=1)
        assert torch.allclose(a[-1][0], b[-1][0]) is not mixes
        assert torch.allclose(alone[-1], b[-1], atol=1e-6) is not mixes


def test_two_clips_do_not_see_each_other():
    branch = randomised(retention_branch(config_of()))
    x, t, context, image = inputs()
    with torch.no_grad():
        both = outputs(branch, x, t, context, image, frames=2)
        first = outputs(branch, x[:2], t[:2], context[:2], image, frames=2)
    for a, b in zip(both, first, strict=True):
        torch.testing.assert_close(a[:2], b, rtol=1e-4, atol=1e-4)


def test_one_image_for_all_is_the_same_image_for_each():
    branch = randomised(retention_branch(config_of()))
    x, t, context, image = inputs()
    with torch.no_grad():
        a = outputs(branch, x, t, context, image, frames=4)
        b = outputs(branch, x, t, context, image.expand(4, -1, -1, -1), frames=4)
    for one, each in zip(a, b, strict=True):
        torch.testing.assert_close(one, each, rtol=1e-4, atol=1e-4)


def test_the_image_in_another_range_is_the_image_in_another_range():
    unit, signed = (retention_branch(config_of(image_range=r, temporal="none")) for r in ("unit", "signed"))
    signed.load_state_dict(randomised(unit).state_dict())
    image = inputs()[-1]
    torch.testing.assert_close(signed.encode(image / 2 + 0.5), unit.encode(image))


@pytest.mark.parametrize("side", [4, 9])
def test_an_image_of_another_size_is_named(side):
    branch = retention_branch(config_of(temporal="none"))
    x, t, context, _ = inputs()
    with pytest.raises(ValueError, match="4 times the height and width of the latents"):
        branch(x, t, context, branch.encode(torch.ones(1, 3, 4 * side, 4 * side)))


def test_the_frozen_layers_are_not_trained_and_leave_nothing_out_at_random():
    branch = randomised(retention_branch(config_of())).train()
    x, t, context, image = inputs()
    a, b = (outputs(branch, x, t, context, image, frames=4) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    torch.stack([y.square().mean() for y in a]).sum().backward()
    assert branch.temporal is not None
    assert not any(p.requires_grad or p.grad is not None for p in branch.temporal.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in branch.trained())
    assert branch.training
    assert not any(module.training for module in branch.temporal.modules())


def test_the_frozen_layers_are_in_evaluation_from_the_first():
    """Before train() or eval() is called, which a training never does."""
    temporal = retention_branch(config_of()).temporal
    assert temporal is not None
    assert not any(module.training for module in temporal.modules())


def test_it_starts_as_a_copy_of_the_unet():
    branch = retention_branch(config_of(temporal="none"))
    unet = dict(randomised(retention_branch(config_of(temporal="none")), 3).state_dict())
    del unet["controlnet_mid_block.weight"]
    branch.start_from({**unet, "up_blocks.0.resnets.0.conv1.weight": torch.zeros(1)})
    for name, weight in branch.state_dict().items():
        assert torch.equal(weight, unet.get(name, torch.ones(1))) is not name.startswith("controlnet_"), name
    unet["conv_in.weight"] = torch.zeros(32, 9, 3, 3)
    with pytest.raises(
        ValueError, match=r"conv_in\.weight is \(32, 4, 3, 3\) in the branch and \(32, 9, 3, 3\) in the U-Net"
    ):
        branch.start_from(unet)


def test_a_branch_without_its_temporal_layers_is_refused():
    with pytest.raises(ValueError, match="temporal is 'frozen' in its config, but no temporal layers were passed"):
        RetentionBranch(RetentionConfig(**SMALL))
    with pytest.raises(ValueError, match="temporal is 'none' in its config, but some temporal layers were passed"):
        RetentionBranch(RetentionConfig(**SMALL, temporal="none"), temporal=nn.Identity())
