"""VidRD on a ComfyUI MODEL: a check of the base model, and its fine-tuned blocks as weight patches.

The temporal layers run like all others, in `apply`. The fine-tuned blocks become ordinary weight patches of the clone,
like those of a LoRA: ComfyUI applies them when it loads the MODEL, and restores the original weights exactly.
"""

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from torch import Tensor

from ...ldm_names import inverse, rename, unet_prefixes
from ...vidrd.config import VidrdConfig
from ...vidrd.model import places
from ..base import unet
from .files import LoadedMotion

ModelPatcher = comfy.model_patcher.ModelPatcher
PREFIX = "diffusion_model."


def check_base(model: ModelPatcher, config: VidrdConfig) -> None:
    """ValueError, naming both sizes, unless the model was built for a U-Net with these layers and this text."""
    modules = unet.places(unet.require_unet(model))
    actual = {slot: unet.channels_of(layer) for slot, layer in modules.items() if slot.place != "layer"}
    expected = places(config)
    mismatches = sorted(slot for slot in actual.keys() | expected.keys() if actual.get(slot) != expected.get(slot))
    if mismatches:
        expected_layer, actual_layer = (
            unet.describe_channels(layers.get(mismatches[0])) for layers in (expected, actual)
        )
        raise ValueError(
            f"VidRD model: it has {expected_layer} at {mismatches[0]}, but this MODEL is {unet.family(model)} with "
            f"{actual_layer} there; load the kind of checkpoint that it was trained on, which is Stable Diffusion 2.1 "
            "for the published model"
        )
    deep = [m for m in modules.values() if isinstance(m, SpatialTransformer) and len(m.transformer_blocks) > 1]
    if deep:
        raise ValueError(
            f"VidRD model: it has one layer for each spatial transformer, but this MODEL is {unet.family(model)} with "
            f"{len(deep[0].transformer_blocks)} blocks in one; load the kind of checkpoint that it was trained on"
        )
    width = model.model.model_config.unet_config.get("context_dim")
    if config.spatial and width != config.context_dim:
        raise ValueError(
            f"VidRD model: its cross-attention takes text of width {config.context_dim}, but this MODEL is "
            f"{unet.family(model)} with {width}; load the kind of checkpoint that it was trained on"
        )


def add_spatial(model: ModelPatcher, motion: LoadedMotion, strength: float) -> None:
    """Set weight + strength (fine-tuned - weight) for every weight of the fine-tuned blocks of this clone.

    The difference is taken to the originally loaded weights, so that LoRAs can be added before or after, in any order.
    """
    config = motion.config
    assert isinstance(config, VidrdConfig)
    names = inverse(unet_prefixes(len(config.block_channels), config.layers_per_block, config.attention))
    tuned = {PREFIX + k: v for k, v in rename(motion.spatial, names).items()}
    base = model.get_key_patches(PREFIX)
    _match(tuned, {k: tuple(v[0][0].shape) for k, v in base.items()}, unet.family(model))
    model.add_patches({key: (_difference(value, base[key][0]),) for key, value in tuned.items()}, strength)


def _match(tuned: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], family: str) -> None:
    wrong = [key for key, value in tuned.items() if shapes.get(key) != tuple(value.shape)]
    if wrong:
        raise ValueError(
            f"VidRD model: its weight {wrong[0]} of shape {tuple(tuned[wrong[0]].shape)} has no match in this MODEL, "
            f"which is {family} ({shapes.get(wrong[0], 'no such weight')}); load the checkpoint that it was trained on"
        )


def _difference(tuned: Tensor, base: tuple) -> Tensor:
    """fine-tuned - base, in the precision of the file. base: a weight as ComfyUI stores it, and its conversion."""
    stored_weight, convert = base
    weight = comfy.model_management.cast_to_device(stored_weight, torch.device("cpu"), torch.float32, copy=True)
    return (tuned.float() - convert(weight, inplace=True)).to(tuned.dtype)
