"""What a frame is made from, and whether an ART-V model, a MODEL and these latents fit: errors come before work."""

from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor

from ...artv.config import ArtvConfig
from ...artv.masked import masked_prediction
from ...artv.places import sites
from ...core.slots import MIDDLE, Slot
from ..base.unet import channels_of, family, places, require_unet, told_channels

ModelPatcher = comfy.model_patcher.ModelPatcher


@dataclass(frozen=True, eq=False)
class Given:
    """What one frame is made from, in the MODEL's own latent space (after `process_in`)."""

    references: Tensor | None
    """(2, c, h, w): y^{i-1} and y^{i-2}, clean; None: blank."""
    anchor: Tensor | None
    """(c, h, w), or (T, k) tokens where the file takes CLIP's; None: none."""
    level: int
    """Of the augmentation's noise, a time step from 0 to 999. The paper's is 200."""
    noise: Tensor
    """(3, c, h, w): unit noise for the references and the anchor."""


def check_base(model: ModelPatcher, config: ArtvConfig) -> None:
    """It was built for a U-Net of these sizes, this text and these latents. ValueError names both."""
    found = places(require_unet(model, "ART-V model"))
    given = {slot: channels_of(layer) for slot, layer in found.items() if slot.place != "resnet"}
    needed = _needed(config)
    odd = sorted(slot for slot in given.keys() | needed.keys() if given.get(slot) != needed.get(slot))
    if odd:
        raise ValueError(
            f"ART-V model: at {odd[0]} it has {told_channels(needed.get(odd[0]))}, this MODEL is {family(model)} with "
            f"{told_channels(given.get(odd[0]))} there; load the kind of checkpoint that it was trained on"
        )
    latents: Any = model.get_model_object("latent_format")
    width = model.model.model_config.unet_config.get("context_dim")
    for what, own, its in (
        ("text tokens", config.context_dim, width),
        ("latent channels", config.latent_channels, latents.latent_channels),
    ):
        if own != its:
            raise ValueError(
                f"ART-V model: it was trained with {what} {own} wide, this MODEL is {family(model)} with {its}; load "
                "the kind of checkpoint that it was trained on"
            )


def check_given(given: Given, config: ArtvConfig) -> None:
    """What a frame is made from has the right shapes and numbers. ValueError names what has not."""
    if given.noise.ndim != 4 or given.noise.shape[:2] != (3, config.latent_channels):
        raise ValueError(
            f"ART-V: noise is {tuple(given.noise.shape)}; needed is (3, {config.latent_channels}, height, width), for "
            "two references and an anchor"
        )
    if not 0 <= given.level < 1000:
        raise ValueError(
            f"ART-V: the level of the augmentation is {given.level}; it is a time step from 0 to 999, 200 in the paper"
        )
    size = tuple(given.noise.shape[1:])
    _check("noise", given.noise, (3, *size))
    _check("the references", given.references, (2, *size))
    if config.anchor == "latent":
        _check("the anchor", given.anchor, size)
    elif given.anchor is not None:
        _check("the anchor, CLIP tokens for this file,", given.anchor, (len(given.anchor), config.token_width))


def _check(name: str, values: Tensor | None, shape: tuple[int, ...]) -> None:
    if values is None:
        return
    if tuple(values.shape) != shape:
        raise ValueError(f"ART-V: {name} is {tuple(values.shape)}, needed is {shape}; resize it to the frame's size")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"ART-V: {name} holds NaN or infinite values; the frame that it came from was broken, begin again before it"
        )


def _needed(config: ArtvConfig) -> dict[Slot, int]:
    """Slot of every layer, and of every spatial transformer once more -> its channels."""
    sizes, layers = config.block_channels, config.layers_per_block
    found = {Slot("down", i, j): c for i, c in enumerate(sizes) for j in range(layers)}
    found |= {MIDDLE: sizes[-1]}
    found |= {Slot("up", i, j): c for i, c in enumerate(reversed(sizes)) for j in range(layers + 1)}
    inside = {Slot(s.part, s.block, s.layer, "attended"): sizes[level] for s, level in sites(config).items()}
    return found | inside


def check_latent(noise: Tensor, given: Given) -> None:
    """ValueError where what is sampled is no latent like those that are given."""
    if noise.ndim != 4 or noise.shape[1:] != given.noise.shape[1:]:
        raise ValueError(
            f"ART-V: the latent to sample is {tuple(noise.shape)}, references and anchor are "
            f"{tuple(given.noise.shape[1:])}; sample latents of their channels, height and width"
        )


def check_areas(guider: Any) -> None:
    """ValueError for a condition that is for an area."""
    for role, found in getattr(guider, "conds", {}).items():
        if any("area" in condition for condition in found or ()):
            raise ValueError(
                f"ART-V: the {role} condition is for an area of the picture, but references and anchor are whole "
                "pictures; use a mask in place of the area"
            )


def blend(x_0: Tensor, x: Tensor, sigma: Tensor, m: Tensor, y_ref: Tensor, form: str) -> Tensor:
    """Eq. 7; where m is 0, x_0 bit for bit."""
    levels = sigma.view(-1, 1, 1, 1).to(x_0)
    return torch.where(m == 0, x_0, masked_prediction(x_0, x, y_ref, levels, m, form))
