"""Slots in ComfyUI's UNetModel: which layer a slot comes behind, and whether a MODEL is such a U-Net at all."""

from itertools import groupby
from typing import Any

import comfy.model_patcher
from comfy.ldm.modules.attention import SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample, VideoResBlock
from torch import nn

from ...core.config import MotionConfig
from ...core.slots import MIDDLE, Part, Slot, slots

SPATIAL = (ResBlock, SpatialTransformer)


def places(unet: UNetModel) -> dict[Slot, nn.Module]:
    """Slot -> the layer whose output it comes behind, or the spatial transformer that it is inside of.

    ComfyUI's blocks are one layer each: ResBlock, perhaps SpatialTransformer, perhaps Upsample; a Downsample has a
    block of its own.
    """
    found: dict[Slot, nn.Module] = {}
    block = layer = 0
    for group in _groups(unet.input_blocks):
        if any(isinstance(module, Downsample) or getattr(module, "updown", False) for module in group):
            block, layer = block + 1, 0
        elif any(isinstance(module, SPATIAL) for module in group):
            found |= _layer("down", block, layer, group)
            layer += 1
    found |= _middle(unet.middle_block)
    block = layer = 0
    for group in _groups(unet.output_blocks):
        found |= _layer("up", block, layer, group)
        layer += 1
        if any(isinstance(module, Upsample) or getattr(module, "updown", False) for module in group):
            block, layer = block + 1, 0
    return found


def layers_by_slot(unet: UNetModel) -> dict[Slot, nn.Module]:
    """The slots behind whole layers, in the order of a forward pass."""
    return {slot: layer for slot, layer in places(unet).items() if slot.place == "layer"}


def _layer(part: Part, block: int, number: int, group: list[nn.Module]) -> dict[Slot, nn.Module]:
    found: dict[Slot, nn.Module] = {}
    spatial = [module for module in group if isinstance(module, SPATIAL)]
    for module in spatial:
        found[Slot(part, block, number, "resnet" if isinstance(module, ResBlock) else "attended")] = module
    return found | {Slot(part, block, number): spatial[-1]}


def _middle(block: Any) -> dict[Slot, nn.Module]:
    spatial = [module for module in block or () if isinstance(module, SPATIAL)]
    resblocks = [module for module in spatial if isinstance(module, ResBlock)]
    found: dict[Slot, nn.Module] = {Slot("mid", 0, i, "resnet"): module for i, module in enumerate(resblocks)}
    found |= {Slot("mid", 0, 0, "attended"): m for m in spatial if isinstance(m, SpatialTransformer)}
    return found | ({MIDDLE: spatial[-2:][0]} if spatial else {})  # before the last ResBlock


def require_unet(model: comfy.model_patcher.ModelPatcher, what: str = "motion model") -> UNetModel:
    """The MODEL's image U-Net. ValueError for every other kind of network, named. what: ours, that is to work in it."""
    unet = model.get_model_object("diffusion_model")
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"{what}: this MODEL is {family(model)}, whose network is a {type(unet).__name__}; {what}s work in the "
            "U-Net of Stable Diffusion 1.5 and its kin. Load such a checkpoint"
        )
    if any(isinstance(module, VideoResBlock | SpatialVideoTransformer) for module in unet.modules()):
        raise ValueError(
            f"{what}: this MODEL is {family(model)}, which has temporal layers of its own; {what}s work in an image "
            "model such as Stable Diffusion 1.5. Load such a checkpoint"
        )
    return unet


def check_base(model: comfy.model_patcher.ModelPatcher, config: MotionConfig) -> None:
    """The motion model was built for a U-Net of this size. ValueError names both sizes."""
    given = channels_by_slot(require_unet(model))
    needed = slots(config)
    lacking = config.mid_block and MIDDLE not in given
    if lacking or {**needed, MIDDLE: 0} != {**given, MIDDLE: 0}:
        raise ValueError(
            f"motion model: it was built for a U-Net with {_sizes(needed)}, this MODEL is {family(model)} with "
            f"{_sizes(given)}; load the kind of checkpoint that the motion model was trained on"
        )


def channels_by_slot(unet: UNetModel) -> dict[Slot, int]:
    """Slot -> channels of the U-Net there."""
    return {slot: channels_of(layer) for slot, layer in layers_by_slot(unet).items()}


def transformed(layer: Any, x: Any, context: Any, options: dict[str, Any]) -> Any:
    """A spatial transformer, for a handler that runs in its place: ComfyUI counts there, for the patches of others."""
    x = layer(x, context, options)
    if "transformer_index" in options:
        options["transformer_index"] += 1
    return x


def channels_of(layer: Any) -> int:
    """Of the features behind a ResBlock or a spatial transformer."""
    return layer.out_channels if isinstance(layer, ResBlock) else layer.in_channels


def told_channels(channels: int | None) -> str:
    """A layer of so many channels, for a message; None: there is none."""
    return "nothing" if channels is None else f"a layer of {channels} channels"


def family(model: comfy.model_patcher.ModelPatcher) -> str:
    """ComfyUI's name for the kind of model: SD15, SDXL, Flux, ..."""
    return type(model.model.model_config).__name__


def _groups(blocks: Any) -> list[list[nn.Module]]:
    return [list(group) for group in blocks]


def _sizes(channels: dict[Slot, int]) -> str:
    """'channels 320, 640, 1280, 1280 and 2 layers in its down blocks'; with the middle block when it has a slot."""
    down = {slot: count for slot, count in channels.items() if slot.part == "down"}
    blocks = [list(group) for _, group in groupby(down, key=lambda slot: slot.block)]
    layers = "/".join(map(str, sorted({len(block) for block in blocks})))
    text = f"channels {', '.join(str(down[block[0]]) for block in blocks)} and {layers} layers in its down blocks"
    return text + (" and a middle block" if MIDDLE in channels else "")
