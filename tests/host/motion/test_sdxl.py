"""AnimateDiff-SDXL and Hotshot-XL on a MODEL of SDXL's family, with three blocks and a vector condition."""

import pytest
import torch
from safetensors.torch import save_file

from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel

FRAMES, CONTEXT, VECTOR = 4, 32, 48
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 1, 1, 1, 1],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "num_heads": -1,
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": CONTEXT,
    "adm_in_channels": VECTOR,
    "num_classes": "sequential",
    "use_temporal_attention": False,
    "legacy": False,
    "dims": 2,
}


@pytest.fixture
def tiny_sdxl(comfy):
    """A MODEL of SDXL's family with random weights; its vector condition is given as it is."""
    from comfy import model_management, model_patcher, supported_models

    family = supported_models.SDXL(UNET)
    family.set_inference_dtype(torch.float32, None)
    model = family.get_model({}, "", device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for weight in model.diffusion_model.parameters():
        weight.data = 0.5 * torch.randn(weight.shape, generator=generator) / max(1, weight[0].numel()) ** 0.5
    model.encode_adm = lambda **options: torch.ones(1, VECTOR)
    device = model_management.get_torch_device()
    return model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def motion_weights(scale=0.1):
    torch.manual_seed(1)
    motion = MotionModel(MotionConfig(block_channels=(32, 64, 128), layers_per_block=2, max_frames=24))
    for parameter in motion.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return motion.state_dict()


def hotshot(weights):
    return {
        name.replace("motion_modules", "temporal_attentions")
        .replace("temporal_transformer.", "")
        .replace("pos_encoder.pe", "pos_encoder.positional_encoding"): weight
        for name, weight in weights.items()
    }


@pytest.fixture
def sampled(comfy, tiny_sdxl, run_sampler, tmp_path):
    """sampled(weights) -> the latent with the motion model of these weights; None: the plain model."""
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    def sample(weights):
        model = tiny_sdxl
        if weights is not None:
            save_file({name: weight.contiguous() for name, weight in weights.items()}, tmp_path / "m.safetensors")
            motion = load_motion(tmp_path / "m.safetensors")
            model = apply_motion(model, motion, frames=FRAMES, beta_schedule="model")
        return run_sampler(model, frames=FRAMES, steps=2)

    return sample


def test_both_layouts_give_the_same_video(sampled):
    weights = motion_weights()
    assert torch.equal(sampled(weights), sampled(hotshot(weights)))


def test_an_untrained_one_changes_no_bit_and_a_trained_one_does(sampled):
    plain = sampled(None)
    assert torch.equal(sampled(motion_weights(scale=0.0)), plain)
    assert (sampled(motion_weights()) - plain).abs().max() > 0.01 * plain.abs().max()
