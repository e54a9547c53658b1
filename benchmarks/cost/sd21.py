"""A ComfyUI MODEL with the sizes of Stable Diffusion 2.1 and random weights."""

from collections.abc import Callable

import torch
from torch import nn

from .bench_temporal import UNET as SD15
from .bench_temporal import randomise

CONTEXT = 1024
UNET = SD15 | {"context_dim": CONTEXT, "use_linear_in_transformer": True}


def sd21_model(dtype: torch.dtype = torch.float32):
    """The MODEL, with eps-prediction, on the device on which ComfyUI samples."""
    from comfy import model_management, model_patcher, supported_models

    family = supported_models.SD20(dict(UNET))
    family.set_inference_dtype(dtype, None)
    model = family.get_model({}, "", device=torch.device("cpu"))
    randomise(model.diffusion_model)
    model.diffusion_model.to(dtype)
    device, offload = model_management.get_torch_device(), model_management.unet_offload_device()
    return model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def weight_shapes(kind: Callable[..., nn.Module], *args, **kwargs) -> dict[str, torch.Size]:
    """Names and shapes of the weights of a network, which is built without memory for them."""
    with torch.device("meta"):
        return {k: v.shape for k, v in kind(*args, **kwargs).state_dict().items()}
