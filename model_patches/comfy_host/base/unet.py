"""Slots in ComfyUI's UNetModel: the layer of each slot, and checks that a MODEL is such a U-Net."""

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
    """Slot -> the layer after whose output it is, or the spatial transformer that contains it.

    Each of ComfyUI's blocks is one layer: a ResBlock, optionally a SpatialTransformer and an Upsample; a Downsample is
    a separate block.
    """
    modules: dict[Slot, nn.Module] = {}
    block = layer = 0
    for group in _groups(unet.input_blocks):
        if any(isinstance(module, Downsample) or getattr(module, "updown", False) for module in group):
            block, layer = block + 1, 0
        elif any(isinstance(module, SPATIAL) for module in group):
            modules |= _layer("down", block, layer, group)
            layer += 1
    modules |= _middle(unet.middle_block)
    block = layer = 0
    for group in _groups(unet.output_blocks):
        modules |= _layer("up", block, layer, group)
        layer += 1
        if any(isinstance(module, Upsample) or getattr(module, "updown", False) for module in group):
            block, layer = block + 1, 0
    return modules


def layers_by_slot(unet: UNetModel) -> dict[Slot, nn.Module]:
    """The slots after whole layers, in the order of a forward pass."""
    return {slot: layer for slot, layer in places(unet).items() if slot.place == "layer"}


def _layer(part: Part, block: int, number: int, group: list[nn.Module]) -> dict[Slot, nn.Module]:
    modules: dict[Slot, nn.Module] = {}
    spatial = [module for module in group if isinstance(module, SPATIAL)]
    for module in spatial:
        modules[Slot(part, block, number, "resnet" if isinstance(module, ResBlock) else "attended")] = module
    return modules | {Slot(part, block, number): spatial[-1]}


def _middle(block: Any) -> dict[Slot, nn.Module]:
    spatial = [module for module in block or () if isinstance(module, SPATIAL)]
    resblocks = [module for module in spatial if isinstance(module, ResBlock)]
    modules: dict[Slot, nn.Module] = {Slot("mid", 0, i, "resnet"): module for i, module in enumerate(resblocks)}
    modules |= {Slot("mid", 0, 0, "attended"): m for m in spatial if isinstance(m, SpatialTransformer)}
    return modules | ({MIDDLE: spatial[-2:][0]} if spatial else {})  # before the last ResBlock


def require_unet(model: comfy.model_patcher.ModelPatcher, subject: str = "motion model") -> UNetModel:
    """The MODEL's image U-Net. ValueError for any other network. subject: our model that needs it, for the message."""
    unet = model.get_model_object("diffusion_model")
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"{subject}: this MODEL is {family(model)}, whose network is a {type(unet).__name__}, but {subject}s need "
            "the U-Net of Stable Diffusion 1.5 or a similar model; load such a checkpoint"
        )
    if any(isinstance(module, VideoResBlock | SpatialVideoTransformer) for module in unet.modules()):
        raise ValueError(
            f"{subject}: this MODEL is {family(model)}, which already has temporal layers, but {subject}s need an "
            "image model such as Stable Diffusion 1.5; load such a checkpoint"
        )
    return unet


def check_base(model: comfy.model_patcher.ModelPatcher, config: MotionConfig) -> None:
    """ValueError, naming both sizes, unless the motion model was built for a U-Net of this size."""
    actual = channels_by_slot(require_unet(model))
    expected = slots(config)
    missing = config.mid_block and MIDDLE not in actual
    if missing or {**expected, MIDDLE: 0} != {**actual, MIDDLE: 0}:
        raise ValueError(
            f"motion model: it was built for a U-Net with {_sizes(expected)}, but this MODEL is {family(model)} with "
            f"{_sizes(actual)}; load the kind of checkpoint that the motion model was trained on"
        )


def image_norms(unet: UNetModel) -> list[nn.Module]:
    """The GroupNorms of the ResBlocks and of the output, which AnimateDiff v1 applies to whole clips."""
    blocks: list[Any] = [module for module in unet.modules() if isinstance(module, ResBlock)]
    return [norm for block in blocks for norm in (block.in_layers[0], block.out_layers[0])] + [unet.out[0]]


def channels_by_slot(unet: UNetModel) -> dict[Slot, int]:
    """Slot -> channels of the U-Net there."""
    return {slot: channels_of(layer) for slot, layer in layers_by_slot(unet).items()}


def run_transformer(layer: Any, x: Any, context: Any, options: dict[str, Any]) -> Any:
    """Run a spatial transformer in a handler, and count it as ComfyUI does, for the patches of other nodes."""
    x = layer(x, context, options)
    if "transformer_index" in options:
        options["transformer_index"] += 1
    return x


def channels_of(layer: Any) -> int:
    """Channels of the output of a ResBlock or a spatial transformer."""
    return layer.out_channels if isinstance(layer, ResBlock) else layer.in_channels


def describe_channels(channels: int | None) -> str:
    """Words for a layer with this number of channels, or for no layer (None), for messages."""
    return "nothing" if channels is None else f"a layer of {channels} channels"


def family(model: comfy.model_patcher.ModelPatcher) -> str:
    """ComfyUI's name for the kind of model: SD15, SDXL, Flux, ..."""
    return type(model.model.model_config).__name__


def _groups(blocks: Any) -> list[list[nn.Module]]:
    return [list(group) for group in blocks]


def _sizes(channels: dict[Slot, int]) -> str:
    """'channels 320, 640, 1280, 1280 and 2 layers in its down blocks', plus the middle block if it has a slot."""
    down = {slot: count for slot, count in channels.items() if slot.part == "down"}
    blocks = [list(group) for _, group in groupby(down, key=lambda slot: slot.block)]
    layers = "/".join(map(str, sorted({len(block) for block in blocks})))
    text = f"channels {', '.join(str(down[block[0]]) for block in blocks)} and {layers} layers in its down blocks"
    return text + (" and a middle block" if MIDDLE in channels else "")
