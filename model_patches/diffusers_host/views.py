"""What the views need of a diffusers U-Net: attention to the frame-wise tokens, read in one forward."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ..core.maps import column_maps


@torch.no_grad()
def token_attention(unet: UNet2DConditionModel, x: Tensor, timestep: int, context: Tensor) -> Tensor:
    """Maps (f, n, h, w) of the tokens behind the text's, means over heads and layers, in a forward of one clip.

    unet: with a HARIVO model attached, its `frames` set. x: (f, c, h, w); context: (f, L, d) of the text alone.
    ValueError when no tokens were appended.
    """
    text, (h, w) = context.shape[1], x.shape[2:]
    maps: list[Tensor] = []

    def look(layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        words = kwargs["encoder_hidden_states"]
        pixels = args[0] if args else kwargs["hidden_states"]
        if words.shape[1] > text:
            shrink = round((h * w / pixels.shape[1]) ** 0.5)
            found = column_maps(layer.to_q(pixels), layer.to_k(words), layer.heads, slice(text, words.shape[1]))
            small = found.unflatten(2, (-(-h // shrink), -1))
            maps.append(F.interpolate(small, (h, w), mode="bilinear", align_corners=False))

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in cross_attentions(unet)]
    try:
        unet(x, torch.full((len(x),), timestep, device=x.device), context)
    finally:
        for hook in hooks:
            hook.remove()
    if not maps:
        raise ValueError(
            "token attention: no frame-wise tokens were appended; attach a HARIVO model that has them, with tokens "
            "above 0 and frames set"
        )
    return torch.stack(maps).mean(0)


def cross_attentions(unet: UNet2DConditionModel) -> list[nn.Module]:
    blocks: list[Any] = [module for module in unet.modules() if hasattr(module, "attn2")]
    return [block.attn2 for block in blocks if block.attn2 is not None]
