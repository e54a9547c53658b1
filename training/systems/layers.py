"""VidRD's temporal layers on a base, which VidRD and DreamVideo both train."""

from typing import Any

import torch

from ...model_patches.vidrd.config import VidrdConfig
from ..plans.common import LayersTable
from .bases import Base

DROPOUT = 7  # the purpose of a sample's generator, as in engine.sample_generator


def seed_dropout(seed: int, sample: int) -> None:
    """torch's own random numbers, which dropout takes, from here on those of a sample."""
    torch.manual_seed((seed * 1_000_003 + sample) * 31 + DROPOUT)


def layers_config(table: LayersTable, base: Base, frames: int) -> VidrdConfig:
    """Sizes of the temporal layers alone."""
    sizes = base.config
    unet: Any = base.unet.config
    heads = unet.attention_head_dim  # diffusers' name; it is the number of heads, of all blocks or of each
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
