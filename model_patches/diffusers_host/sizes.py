"""Whether a module was built for a U-Net: one comparison for all that go into diffusers'."""

from collections.abc import Mapping
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


def check_sizes(unet: UNet2DConditionModel, needed: Mapping[str, Any], built: str) -> None:
    """ValueError naming the first of the `needed` sizes that this U-Net does not have.

    needed: some of "block channels", "layers per block", "attention", "text width" and "latent channels". built: how
    the message begins, "VidRD model: it was built".
    """
    sizes: Any = unet.config
    blocks: list[Any] = list(unet.down_blocks)
    given = {
        "block channels": tuple(sizes.block_out_channels),
        "layers per block": sizes.layers_per_block,
        "attention": tuple(bool(getattr(block, "attentions", None)) for block in blocks),
        "text width": sizes.cross_attention_dim,
        "latent channels": sizes.in_channels,
    }
    for name, value in needed.items():
        if given[name] != value:
            raise ValueError(
                f"{built} for a U-Net with {name} {value}, this one has {given[name]}; load the base model that it was "
                "trained on"
            )
