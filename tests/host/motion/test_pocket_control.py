"""One ControlNet file of the pocket in two hosts; its training edges equal those of ComfyUI's node."""

from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.diffusers_host import pocket as diffusers_pocket
from stillmotion.model_patches.layouts import CheckpointError
from stillmotion.model_patches.ldm_names import control_prefixes, inverse
from stillmotion.model_patches.pocket import CONTROL_SYSTEM, PocketConfig, compact_control
from stillmotion.training.data import sprites
from stillmotion.training.pocket.control import edges


@pytest.fixture(scope="module")
def control_file(tmp_path_factory):
    """A ControlNet with random weights, because zero convolutions would hide mistakes."""
    torch.manual_seed(0)
    config = PocketConfig()
    control = ControlNetModel.from_unet(diffusers_pocket.new_unet(config), load_weights_from_unet=False)
    for name, weight in control.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(weight, std=0.05)
    path = tmp_path_factory.mktemp("control") / "control.safetensors"
    weights = compact_control(config, control.state_dict())
    checkpoint.save(path, system=CONTROL_SYSTEM, config=config.to_dict(), weights=weights)
    return path


def inputs():
    g = torch.Generator().manual_seed(3)
    x, context = torch.randn(3, 4, 16, 16, generator=g), torch.randn(3, 77, 128, generator=g)
    return x, torch.tensor([1.0, 400.0, 999.0]), context, torch.rand(3, 3, 128, 128, generator=g)


def test_the_names_are_a_bijection():
    names = control_prefixes(4, 2, (True, True, True, False))
    assert inverse(inverse(names)) == names


def test_both_hosts_give_the_same_residuals(comfy, control_file):
    from stillmotion.model_patches.comfy_host.pocket import load_pocket_control

    x, t, context, hint = inputs()
    net: Any
    net, reference = load_pocket_control(control_file).control_model, diffusers_pocket.load_control(control_file)
    with torch.inference_mode():
        output = net(x=x, hint=hint, timesteps=t, context=context)
        down, middle = reference(x, t, context, controlnet_cond=hint, return_dict=False)
    assert len(output["output"]) == len(down) == 6
    for a, b in zip([*output["output"], *output["middle"]], [*down, middle], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        assert b.abs().max() > 0.01


@pytest.mark.slow
def test_both_hosts_give_the_same_eps_under_the_bundled_files(comfy, root):
    """ComfyUI's ControlNet object, called like by a sampler: it resizes the hint and passes residuals to the U-Net."""
    from stillmotion.model_patches.comfy_host.pocket import load_pocket, load_pocket_control

    model: Any
    model, _, _ = load_pocket(root / "pocket" / "pocket.safetensors")
    pocket = diffusers_pocket.load_pocket(root / "pocket" / "pocket.safetensors")
    path = root / "pocket" / "control_edges.safetensors"
    control, reference = load_pocket_control(path).copy(), diffusers_pocket.load_control(path)
    x, t, context, _ = inputs()
    hints = edges(torch.cat([sprites.render(sprites.clip(1, k), [0.5]) for k in range(3)]))
    sampling = model.get_model_object("model_sampling")
    sigma = sampling.sigma(t)
    control.set_cond_hint(hints).pre_run(model.model, sampling.percent_to_sigma)
    noisy = x * (sigma.view(-1, 1, 1, 1) ** 2 + 1).sqrt()  # the x of ComfyUI is scaled by its noise level
    hint = torch.nn.functional.interpolate(hints, size=(128, 128), mode="nearest-exact")
    with torch.inference_mode():
        added = control.get_control(noisy, sigma, {"c_crossattn": context}, 1, {})
        output = model.model.diffusion_model(x, t, context=context, control=added)
        down, middle = reference(x, t, context, controlnet_cond=hint, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        expected = pocket.unet(x, t, context, **residuals).sample
        plain = pocket.unet(x, t, context).sample
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(expected, plain, rtol=0, atol=0.01)


def test_the_edges_of_the_training_are_the_canny_nodes(comfy):
    from comfy_extras import nodes_canny

    frames = torch.cat([sprites.render(sprites.clip(2, k), [0.5]) for k in range(4)])
    node: Any = nodes_canny.Canny
    (canny,) = node.execute(frames.permute(0, 2, 3, 1), 0.1, 0.2).result
    assert torch.equal(canny.permute(0, 3, 1, 2), edges(frames, 0.1, 0.2))


def test_another_kind_of_file_is_refused_by_name(comfy, root):
    from stillmotion.model_patches.comfy_host.pocket import load_pocket_control

    with pytest.raises(CheckpointError, match=r"pocket\.safetensors is a StillMotion 'pocket' file"):
        load_pocket_control(root / "pocket" / "pocket.safetensors")
