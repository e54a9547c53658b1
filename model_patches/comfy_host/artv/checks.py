"""The inputs of a frame, and checks that an ART-V model, a MODEL and latents fit together, before heavy work."""

from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor

from ...artv.config import ArtvConfig
from ...artv.masked import masked_prediction
from ...artv.places import sites
from ...core.slots import MIDDLE, Slot
from ..base.unet import channels_of, describe_channels, family, places, require_unet

ModelPatcher = comfy.model_patcher.ModelPatcher


@dataclass(frozen=True, eq=False)
class FrameInputs:
    """The inputs of one frame, in the MODEL's latent space (after `process_in`)."""

    references: Tensor | None
    """(2, c, h, w): y^{i-1} and y^{i-2}, clean; None: no references."""
    anchor: Tensor | None
    """(c, h, w), or (T, k) tokens if the file uses CLIP tokens; None: no anchor."""
    level: int
    """Level of the augmentation noise, a time step from 0 to 999; 200 in the paper."""
    noise: Tensor
    """(3, c, h, w): unit noise for the references and the anchor."""


def check_base(model: ModelPatcher, config: ArtvConfig) -> None:
    """ValueError, naming both sizes, unless the model was built for this U-Net, this text and these latents."""
    modules = places(require_unet(model, "ART-V model"))
    actual = {slot: channels_of(layer) for slot, layer in modules.items() if slot.place != "resnet"}
    expected = _expected_channels(config)
    mismatches = sorted(slot for slot in actual.keys() | expected.keys() if actual.get(slot) != expected.get(slot))
    if mismatches:
        raise ValueError(
            f"ART-V model: it has {describe_channels(expected.get(mismatches[0]))} at {mismatches[0]}, but this MODEL "
            f"is {family(model)} with {describe_channels(actual.get(mismatches[0]))} there; load the kind of "
            "checkpoint that it was trained on"
        )
    latents: Any = model.get_model_object("latent_format")
    width = model.model.model_config.unet_config.get("context_dim")
    for label, expected_width, actual_width in (
        ("text tokens of width", config.context_dim, width),
        ("latent channels", config.latent_channels, latents.latent_channels),
    ):
        if expected_width != actual_width:
            raise ValueError(
                f"ART-V model: it was trained with {label} {expected_width}, but this MODEL is {family(model)} with "
                f"{actual_width}; load the kind of checkpoint that it was trained on"
            )


def check_inputs(inputs: FrameInputs, config: ArtvConfig) -> None:
    """ValueError, naming the first wrong input, unless all shapes and numbers are valid."""
    if inputs.noise.ndim != 4 or inputs.noise.shape[:2] != (3, config.latent_channels):
        raise ValueError(
            f"ART-V: the shape of noise is {tuple(inputs.noise.shape)}; it must be (3, {config.latent_channels}, "
            "height, width), for two references and an anchor"
        )
    if not 0 <= inputs.level < 1000:
        raise ValueError(
            f"ART-V: the augmentation level is {inputs.level}; it must be a time step from 0 to 999 (200 in the paper)"
        )
    size = tuple(inputs.noise.shape[1:])
    _check("noise", inputs.noise, (3, *size))
    _check("the references", inputs.references, (2, *size))
    if config.anchor == "latent":
        _check("the anchor", inputs.anchor, size)
    elif inputs.anchor is not None:
        _check("the anchor, CLIP tokens for this file,", inputs.anchor, (len(inputs.anchor), config.token_width))


def _check(name: str, values: Tensor | None, shape: tuple[int, ...]) -> None:
    if values is None:
        return
    if tuple(values.shape) != shape:
        raise ValueError(
            f"ART-V: {name} is {tuple(values.shape)}, but must be {shape}; resize it to the size of the frame"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"ART-V: {name} contains NaN or infinite values, so an earlier frame is broken; start again before it"
        )


def _expected_channels(config: ArtvConfig) -> dict[Slot, int]:
    """Slot of every layer and of every spatial transformer -> channels."""
    sizes, layers = config.block_channels, config.layers_per_block
    channels = {Slot("down", i, j): c for i, c in enumerate(sizes) for j in range(layers)}
    channels |= {MIDDLE: sizes[-1]}
    channels |= {Slot("up", i, j): c for i, c in enumerate(reversed(sizes)) for j in range(layers + 1)}
    inside = {Slot(s.part, s.block, s.layer, "attended"): sizes[level] for s, level in sites(config).items()}
    return channels | inside


def check_latent(noise: Tensor, inputs: FrameInputs) -> None:
    """ValueError when the sampled latent has another size than the inputs."""
    if noise.ndim != 4 or noise.shape[1:] != inputs.noise.shape[1:]:
        raise ValueError(
            f"ART-V: the latent to sample is {tuple(noise.shape)}, but references and anchor are "
            f"{tuple(inputs.noise.shape[1:])}; use the same channels, height and width"
        )


def check_areas(guider: Any) -> None:
    """ValueError for a condition with an area."""
    for role, conditions in getattr(guider, "conds", {}).items():
        if any("area" in condition for condition in conditions or ()):
            raise ValueError(
                f"ART-V: the {role} condition is for an area of the image, but references and anchor are whole "
                "images; use a mask instead of the area"
            )


def blend(x_0: Tensor, x: Tensor, sigma: Tensor, m: Tensor, y_ref: Tensor, form: str) -> Tensor:
    """Eq. 7; exactly x_0 where m is 0."""
    levels = sigma.view(-1, 1, 1, 1).to(x_0)
    return torch.where(m == 0, x_0, masked_prediction(x_0, x, y_ref, levels, m, form))
