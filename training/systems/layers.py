"""VidRD's temporal layers for a base model; both VidRD and DreamVideo train them."""

from typing import Any

import torch

from ...model_patches.vidrd.config import VidrdConfig
from ..plans.common import LayersTable
from .bases import Base

DROPOUT = 7  # the purpose of a sample's generator, see engine.loop.sample_generator


def seed_dropout(seed: int, sample: int) -> None:
    """Seed torch's global generator, which dropout uses, for a sample."""
    torch.manual_seed((seed * 1_000_003 + sample) * 31 + DROPOUT)


def layers_config(table: LayersTable, base: Base, frames: int) -> VidrdConfig:
    """The configuration of the temporal layers, without spatial layers."""
    sizes = base.config
    unet: Any = base.unet.config
    heads = unet.attention_head_dim  # in spite of diffusers' name: the number of heads, for all blocks or per block
    blocks = len(sizes.unet_channels)
    return VidrdConfig(
        block_channels=sizes.unet_channels,
        attention=sizes.unet_attention,
        heads=(heads,) * blocks if isinstance(heads, int) else tuple(heads),
        layers_per_block=sizes.unet_layers,
        context_dim=sizes.context,
        spatial=False,
        conv_layers=table.conv_layers,
        dropout=table.dropout,
        group_norm=table.group_norm,
        embedding=table.embedding,
        frames=frames,
        beta_schedule=table.beta_schedule,
        beta_start=table.beta_start,
        beta_end=table.beta_end,
    )
