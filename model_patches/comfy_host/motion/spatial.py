"""VidRD on a ComfyUI MODEL: which base it fits, and its fine-tuned blocks as weight patches.

Its temporal layers run where all temporal layers run, in `motion`. The fine-tuned blocks become ordinary weight patches
of the clone, like a LoRA's: ComfyUI applies them when it loads the MODEL, and takes them back bit for bit for another.
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
    """The model was built for a U-Net with these layers, and for this text. ValueError names both sizes."""
    found = unet.places(unet.require_unet(model))
    given = {slot: unet.channels_of(layer) for slot, layer in found.items() if slot.place != "layer"}
    needed = places(config)
    odd = sorted(slot for slot in given.keys() | needed.keys() if given.get(slot) != needed.get(slot))
    if odd:
        ours, theirs = (unet.told_channels(layers.get(odd[0])) for layers in (needed, given))
        raise ValueError(
            f"VidRD model: at {odd[0]} it has {ours}, this MODEL is {unet.family(model)} with {theirs} there; load the "
            "kind of checkpoint that it was trained on: Stable Diffusion 2.1 for the published one"
        )
    deep = [m for m in found.values() if isinstance(m, SpatialTransformer) and len(m.transformer_blocks) > 1]
    if deep:
        raise ValueError(
            f"VidRD model: it has one layer for each spatial transformer, this MODEL is {unet.family(model)} with "
            f"{len(deep[0].transformer_blocks)} blocks in one; load the kind of checkpoint that it was trained on"
        )
    width = model.model.model_config.unet_config.get("context_dim")
    if config.spatial and width != config.context_dim:
        raise ValueError(
            f"VidRD model: its cross-attention takes text {config.context_dim} wide, this MODEL is "
            f"{unet.family(model)} with {width}; load the kind of checkpoint that it was trained on"
        )


def add_spatial(model: ModelPatcher, motion: LoadedMotion, strength: float) -> None:
    """weight + strength (fine-tuned - weight), for every weight of the fine-tuned blocks, on this clone.

    The difference is to the base as it was loaded, so that LoRAs, before or behind, add to it in any order.
    """
    config = motion.config
    assert isinstance(config, VidrdConfig)
    names = inverse(unet_prefixes(len(config.block_channels), config.layers_per_block, config.attention))
    tuned = {PREFIX + k: v for k, v in rename(motion.spatial, names).items()}
    base = model.get_key_patches(PREFIX)
    _match(tuned, {k: tuple(v[0][0].shape) for k, v in base.items()}, unet.family(model))
    model.add_patches({key: (_difference(value, base[key][0]),) for key, value in tuned.items()}, strength)


def _match(tuned: dict[str, Tensor], given: dict[str, tuple[int, ...]], family: str) -> None:
    wrong = [key for key, value in tuned.items() if given.get(key) != tuple(value.shape)]
    if wrong:
        raise ValueError(
            f"VidRD model: its weight {wrong[0]} of {tuple(tuned[wrong[0]].shape)} has no match in this MODEL, "
            f"which is {family} ({given.get(wrong[0], 'none there')}); load the checkpoint that it was trained on"
        )


def _difference(tuned: Tensor, base: tuple) -> Tensor:
    """In the precision of the file. base: a weight as ComfyUI holds it, and how it becomes plain numbers."""
    held, plain = base
    weight = comfy.model_management.cast_to_device(held, torch.device("cpu"), torch.float32, copy=True)
    return (tuned.float() - plain(weight, inplace=True)).to(tuned.dtype)
