"""For the views: attention to the frame-wise tokens in a diffusers U-Net, recorded in one forward."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ..core.maps import column_maps


@torch.no_grad()
def token_attention(unet: UNet2DConditionModel, x: Tensor, timestep: int, context: Tensor) -> Tensor:
    """Attention maps (f, n, h, w) of the frame-wise tokens, averaged over heads and layers, in a forward of one clip.

    unet: with an attached HARIVO model whose `frames` are set. x: (f, c, h, w); context: (f, L, d) of the text alone.
    ValueError when no tokens were appended.
    """
    text, (h, w) = context.shape[1], x.shape[2:]
    maps: list[Tensor] = []

    def record(layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        tokens = kwargs["encoder_hidden_states"]
        pixels = args[0] if args else kwargs["hidden_states"]
        if tokens.shape[1] > text:
            shrink = round((h * w / pixels.shape[1]) ** 0.5)
            columns = column_maps(layer.to_q(pixels), layer.to_k(tokens), layer.heads, slice(text, tokens.shape[1]))
            grid = columns.unflatten(2, (-(-h // shrink), -1))
            maps.append(F.interpolate(grid, (h, w), mode="bilinear", align_corners=False))

    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in cross_attentions(unet)]
    try:
        unet(x, torch.full((len(x),), timestep, device=x.device), context)
    finally:
        for hook in hooks:
            hook.remove()
    if not maps:
        raise ValueError(
            "token attention: no frame-wise tokens were appended; attach a HARIVO model with tokens, with its tokens "
            "strength above 0 and its frames set"
        )
    return torch.stack(maps).mean(0)


def cross_attentions(unet: UNet2DConditionModel) -> list[nn.Module]:
    blocks: list[Any] = [module for module in unet.modules() if hasattr(module, "attn2")]
    return [block.attn2 for block in blocks if block.attn2 is not None]
