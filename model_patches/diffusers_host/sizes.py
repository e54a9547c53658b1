"""Check that a model was built for a diffusers U-Net, for all models."""

from collections.abc import Mapping
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


def check_sizes(unet: UNet2DConditionModel, expected: Mapping[str, Any], subject: str) -> None:
    """ValueError that names the first of the `expected` sizes that differs from this U-Net.

    expected: some of "block channels", "layers per block", "attention", "text width" and "latent channels". subject:
    the beginning of the message, for example "VidRD model: it was built".
    """
    sizes: Any = unet.config
    blocks: list[Any] = list(unet.down_blocks)
    actual = {
        "block channels": tuple(sizes.block_out_channels),
        "layers per block": sizes.layers_per_block,
        "attention": tuple(bool(getattr(block, "attentions", None)) for block in blocks),
        "text width": sizes.cross_attention_dim,
        "latent channels": sizes.in_channels,
    }
    for name, value in expected.items():
        if actual[name] != value:
            raise ValueError(
                f"{subject} for a U-Net with {name} {value}, but this one has {actual[name]}; load the base model that "
                "it was trained on"
            )
