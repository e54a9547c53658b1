"""One DreamVideo file on the pocket, two hosts, one eps."""

from typing import Any

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.assembly import dreamvideo_model
from stillmotion.model_patches.diffusers_host import dreamvideo as diffusers_dreamvideo
from stillmotion.model_patches.diffusers_host import pocket as diffusers_pocket
from stillmotion.model_patches.diffusers_host import vidrd as diffusers_vidrd
from stillmotion.model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig
from stillmotion.model_patches.ldm_names import control_prefixes, inverse, rename
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.model_patches.vidrd.config import VidrdConfig

FRAMES = 4
POCKET = PocketConfig()
SIZES = {
    "block_channels": POCKET.unet_channels,
    "attention": POCKET.unet_attention,
    "heads": (POCKET.heads,) * 3,
    "layers_per_block": POCKET.unet_layers,
    "context_dim": POCKET.context,
}


def config_of(**changes):
    branch = RetentionConfig(**SIZES, linear_projection=False, hint_channels=(16, 32, 64), **changes)
    layers = VidrdConfig(**SIZES, conv_layers=2, dropout=0.0, spatial=False)
    return DreamVideoConfig(branch=branch, layers=layers.to_dict(), motion=True)


def model_of(config, unet):
    torch.manual_seed(0)
    model = dreamvideo_model(config)
    diffusers_dreamvideo.start_from(model.branch, unet)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("branch.controlnet_", "motion.", "branch.temporal")):
                weight.add_(torch.randn_like(weight) * 0.03)
        model.branch.controlnet_cond_embedding.conv_out.weight.mul_(100)  # type: ignore[operator, union-attr]
    return model.eval()


@pytest.fixture(scope="module")
def pocket(root):
    return diffusers_pocket.load_pocket(root / "pocket" / "pocket.safetensors")


@pytest.fixture
def image():
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4))


@pytest.mark.slow
def test_a_fresh_branch_is_the_unet_bit_for_bit(pocket, image):
    g = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, FRAMES, 4, 16, 16, generator=g), torch.randn(2, 77, 128, generator=g)
    t = torch.tensor([10, 900])
    with torch.no_grad():
        plain = pocket.unet(x.flatten(0, 1), t.repeat_interleave(FRAMES), context.repeat_interleave(FRAMES, 0)).sample
        for inject in ("skips", "up_blocks"):
            branch = dreamvideo_model(config_of(inject=inject)).branch.eval()
            diffusers_dreamvideo.start_from(branch, pocket.unet)
            handle = diffusers_dreamvideo.attach(pocket.unet, branch)
            pixels = image.movedim(-1, 1).expand(2, -1, -1, -1)
            assert torch.equal(handle.predict(x, t, context, pixels).flatten(0, 1), plain)
            handle.remove()


@pytest.mark.parametrize("inject", ["skips", "up_blocks"])
@pytest.mark.parametrize("temporal", ["frozen", "none"])
def test_both_hosts_give_the_same_eps(comfy, root, pocket, image, tmp_path, inject, temporal):
    """The output of ComfyUI's U-Net in the first step of a real run equals that of diffusers for the same input."""
    from comfy import samplers
    from comfy.patcher_extension import WrappersMP

    from stillmotion.model_patches.comfy_host.dreamvideo import retention as dreamvideo
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion
    from stillmotion.model_patches.comfy_host.pocket import load_pocket

    config = config_of(inject=inject, temporal=temporal)
    whole = model_of(config, pocket.unet)
    path = tmp_path / "d.safetensors"
    checkpoint.save(path, system="dreamvideo", config=config.to_dict(), weights=whole.state_dict())
    model, _, _ = load_pocket(root / "pocket" / "pocket.safetensors")
    model = apply_motion(model, load_motion(path), frames=FRAMES)
    calls = []

    def listen(executor, x, t, context, *args, **kwargs):
        calls.append((x.clone(), t.clone(), context.clone(), executor(x, t, context, *args, **kwargs)))
        return calls[-1][-1]

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", listen)
    conditioning = [[torch.randn(1, 77, 128, generator=torch.Generator().manual_seed(2)), {}]]
    (positive,) = dreamvideo.apply_retention((conditioning,), dreamvideo.load_branch(path), image)
    guider = samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)
    noise = torch.randn(FRAMES, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    sigmas = torch.tensor([3.0, 0.0])
    with torch.inference_mode():
        guider.sample(noise, torch.zeros_like(noise), samplers.sampler_object("euler"), sigmas, disable_pbar=True)
    ((x, t, context, output),) = calls

    assert whole.motion is not None
    moving = diffusers_vidrd.attach(pocket.unet, whole.motion)
    handle = diffusers_dreamvideo.attach(pocket.unet, whole.branch, moving)
    with torch.inference_mode():
        pixels = image.movedim(-1, 1)
        expected = handle.predict(x[None], t[:1], context[:1], pixels)[0]
        white = handle.predict(x[None], t[:1], context[:1], torch.ones_like(pixels))[0]
    handle.remove()
    moving.remove()
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    assert (expected - white).abs().max() > 0.01


def test_each_clip_has_its_own_image(pocket, image):
    whole = model_of(config_of(), pocket.unet)
    g = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, FRAMES, 4, 16, 16, generator=g), torch.randn(2, 77, 128, generator=g)
    images, t = torch.rand(2, 3, 64, 64, generator=g), torch.tensor([10, 900])
    moving = diffusers_vidrd.attach(pocket.unet, whole.motion)
    handle = diffusers_dreamvideo.attach(pocket.unet, whole.branch, moving)
    with torch.no_grad():
        both = handle.predict(x, t, context, images)
        second = handle.predict(x[1:], t[1:], context[1:], images[1:])
        other = handle.predict(x[1:], t[1:], context[1:], images[:1])
        handle.strength = 0.0
        none = handle.predict(x[1:], t[1:], context[1:], images[:1])
        moving.frames = FRAMES
        plain = pocket.unet(x[1], t[1:].expand(FRAMES), context[1:].expand(FRAMES, -1, -1)).sample
    moving.remove()
    torch.testing.assert_close(both[1:], second, rtol=0, atol=1e-4)
    assert (other - second).abs().max() > 0.01
    torch.testing.assert_close(none[0], plain, rtol=0, atol=1e-6)


def test_the_branch_can_be_trained_and_the_rest_stays(pocket, image):
    whole = model_of(config_of(), pocket.unet).train()
    g = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, FRAMES, 4, 16, 16, generator=g), torch.randn(1, 77, 128, generator=g)
    moving = diffusers_vidrd.attach(pocket.unet, whole.motion)
    handle = diffusers_dreamvideo.attach(pocket.unet, whole.branch, moving)
    handle.predict(x, torch.tensor([500]), context, image.movedim(-1, 1)).square().mean().backward()
    moving.remove()
    assert whole.motion is not None
    trained = [*whole.branch.trained(), *whole.motion.parameters()]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    assert not any(p.grad is not None for p in pocket.unet.parameters())


def test_a_unet_of_other_sizes_is_refused(pocket):
    sizes = {**SIZES, "context_dim": 64}
    config = DreamVideoConfig(branch=RetentionConfig(**sizes, temporal="none"))
    with pytest.raises(ValueError, match="with text width 64, but this one has 128"):
        diffusers_dreamvideo.attach(pocket.unet, dreamvideo_model(config).branch)


def test_with_a_controlnets_weights_it_is_comfyuis_controlnet(comfy, tmp_path):
    """A second independent implementation: the same residuals, the hint 8 times as wide as the latents."""
    import comfy.cldm.cldm

    from stillmotion.model_patches.comfy_host import pocket
    from stillmotion.model_patches.comfy_host.dreamvideo import retention as dreamvideo

    branch = RetentionConfig(**SIZES, linear_projection=False, temporal="none")
    config = DreamVideoConfig(branch=branch)
    torch.manual_seed(0)
    whole = dreamvideo_model(config)
    with torch.no_grad():
        for weight in whole.parameters():
            weight.add_(torch.randn_like(weight) * 0.03)
    path = tmp_path / "d.safetensors"
    checkpoint.save(path, system="dreamvideo", config=config.to_dict(), weights=whole.state_dict())
    sizes: dict[str, Any] = pocket._unet_config(POCKET) | {"num_heads": POCKET.heads, "num_head_channels": -1}
    net = comfy.cldm.cldm.ControlNet(**sizes, dtype=torch.float32, hint_channels=3)
    names = inverse(control_prefixes(3, POCKET.unet_layers, POCKET.unet_attention))
    net.load_state_dict(rename(whole.branch.state_dict(), names))
    trained_branch = dreamvideo.load_branch(path).patcher.model
    g = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, 4, 16, 16, generator=g), torch.randn(2, 77, 128, generator=g)
    hint, t = torch.rand(1, 3, 128, 128, generator=g), torch.tensor([3.0, 700.0])
    with torch.inference_mode():
        reference = net(x=x, hint=hint.repeat(2, 1, 1, 1), timesteps=t, context=context)
        residuals = trained_branch(x, t, context, trained_branch.encode(hint))
    for a, b in zip([*residuals.down, residuals.mid], [*reference["output"], *reference["middle"]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
