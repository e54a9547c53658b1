"""U-Nets of Stable Diffusion's sizes, or much smaller ones, with random weights on the device."""

from typing import Any

import torch
from torch import Tensor, nn

from ...model_patches.checkpoint import Checkpoint
from ...model_patches.core.config import MotionConfig
from ...model_patches.core.temporal import MotionModel, sinusoid
from ...model_patches.systems import MOTION
from ..cost.bench_temporal import HEADS
from ..cost.bench_temporal import UNET as SD15
from ..cost.sd21 import CONTEXT as SD21_CONTEXT
from ..cost.sd21 import UNET as SD21
from .machine import Setup

TINY_WIDTH, TINY_CONTEXT = 32, 64


def channels(setup: Setup) -> tuple[int, ...]:
    width = TINY_WIDTH if setup.tiny else 320
    return width, 2 * width, 4 * width, 4 * width


def context_width(setup: Setup, family: str = "SD15") -> int:
    if setup.tiny:
        return TINY_CONTEXT
    return 768 if family == "SD15" else SD21_CONTEXT


def fill(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """1 for norms, 0 for biases, otherwise normal with a variance that keeps activations near 1."""
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in module.named_parameters():
        if weight.ndim < 2:
            value = torch.full(weight.shape, 0.0 if name.endswith("bias") else 1.0, device=device, dtype=dtype)
        else:
            value = torch.randn(weight.shape, generator=generator, device=device, dtype=torch.float32)
            value = (value * (0.6 / weight.shape[1:].numel() ** 0.5)).to(dtype)
        weight.requires_grad_(False)
        weight.data = value
    return module


def unet_model(setup: Setup, family: str = "SD15", dtype: torch.dtype | None = None) -> Any:
    """A MODEL of ComfyUI with an eps-predicting U-Net; fp16 on a GPU, fp32 on a processor."""
    from comfy import model_management, model_patcher, supported_models

    dtype = dtype or (torch.float32 if setup.cpu else torch.float16)
    sizes = dict(SD15 if family == "SD15" else SD21)
    if setup.tiny:
        sizes |= {"model_channels": TINY_WIDTH, "context_dim": TINY_CONTEXT}
    config: Any = (supported_models.SD15 if family == "SD15" else supported_models.SD20)(sizes)
    if setup.tiny:
        config.unet_config |= {"num_heads": HEADS, "num_head_channels": -1}
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device=setup.device)
    fill(model.diffusion_model, setup.device, dtype)
    offload = model_management.unet_offload_device()
    return model_patcher.ModelPatcher(model, load_device=setup.device, offload_device=offload)


def motion_weights(setup: Setup) -> dict[str, Tensor]:
    """Of AnimateDiff's v2 sizes, with a middle module, in the precision of the U-Net."""
    with torch.device("meta"):
        motion = MotionModel(motion_config(setup))
    dtype = torch.float32 if setup.cpu else torch.float16
    generator = torch.Generator(setup.device).manual_seed(1)
    weights = {}
    for name, value in motion.state_dict().items():
        if name.endswith(".pe"):
            weights[name] = sinusoid(value.shape[1], value.shape[2])[None].to(setup.device, dtype)
        elif value.ndim < 2:
            start = 0.0 if name.endswith("bias") else 1.0
            weights[name] = torch.full(value.shape, start, device=setup.device, dtype=dtype)
        else:
            noise = torch.randn(value.shape, generator=generator, device=setup.device)
            weights[name] = (noise * (0.6 / value.shape[1:].numel() ** 0.5)).to(dtype)
    return {name: weight.cpu() for name, weight in weights.items()}


def motion_config(setup: Setup, group_norm: str = "per_frame") -> MotionConfig:
    return MotionConfig(block_channels=channels(setup), mid_block=True, heads=HEADS, group_norm=group_norm)


def loaded_motion(setup: Setup, weights: dict[str, Tensor], group_norm: str = "per_frame") -> Any:
    from ...model_patches.comfy_host.motion.files import hold

    return hold(Checkpoint(MOTION, motion_config(setup, group_norm).to_dict(), dict(weights), {}, "random"))
