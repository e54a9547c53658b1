"""Weight layouts of motion LoRAs, as pure functions on a state dict.

A motion LoRA changes linear layers of a motion model: W <- W + strength * (alpha / r) * up down, with down: (r, in),
up: (out, r) (Hu et al. 2021, arXiv:2106.09685, section 4.1). A file without alpha has alpha = r. Layouts, by the names
of a layer's two matrices:

    official, AnimateDiff      ...attention_blocks.0.processor.to_q_lora.{down,up}.weight
    bare, MotionDirector       ...attention_blocks.0.to_q_lora.{down,up}.weight
    kohya, MotionDirector      lora_unet_..._attention_blocks_0_to_q.lora_{down,up}.weight, .alpha
    PEFT                       ...attention_blocks.0.to_q.lora_{A,B}.weight
    diffusers                  either of these with its own names: ...transformer_blocks.0.attn1.to_q...

The result has the names of AnimateDiff's weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .layouts import CheckpointError, from_diffusers, from_hotshot

DOWN, UP, ALPHA = "down", "up", "alpha"
_PREFIX = re.compile(r"^(?:module\.|base_model\.model\.|diffusion_model\.|unet\.|motion_adapter\.)+")
_KOHYA = "lora_unet_"
_PARTS = re.compile(
    r"down_blocks|up_blocks|mid_block|motion_modules|temporal_transformer|temporal_attentions|transformer_blocks"
    r"|attention_blocks|to_[qkv]|to_out|proj_in|proj_out|proj|attn[12]|ff|net|\d+"
)
_DOWN_ENDS = (
    "_lora.down.weight",
    ".lora.down.weight",
    ".lora_linear_layer.down.weight",
    ".lora_down.weight",
    ".lora_A.weight",
    ".lora_A.default.weight",
)
_ENDS = {
    **dict.fromkeys(_DOWN_ENDS, DOWN),
    **dict.fromkeys((end.replace("down", "up").replace("_A", "_B") for end in _DOWN_ENDS), UP),
    **dict.fromkeys(("_lora.alpha", ".alpha"), ALPHA),
}


@dataclass(frozen=True)
class LoraLayer:
    """The change of one linear layer. down: (r, in), up: (out, r), alpha: a factor without unit, None: r."""

    down: Tensor
    up: Tensor
    alpha: float | None = None


def motion_lora(weights: Mapping[str, Tensor], source: str) -> dict[str, LoraLayer]:
    """Name of a weight of the motion model, as in AnimateDiff's files -> its change.

    source: name of the file, for messages. CheckpointError, saying what the file is, when it is not a motion LoRA, or
    when a layer is incomplete.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        name, role = _split(key)
        if role:
            parts.setdefault(_weight_name(name), {})[role] = tensor
    motion = {name: part for name, part in parts.items() if ".motion_modules." in name}
    if not motion:
        raise CheckpointError(f"{source} is not a motion LoRA: {_other(weights, bool(parts))}")
    return {name: _layer(name, part, source) for name, part in motion.items()}


def _split(key: str) -> tuple[str, str]:
    """The name of the layer, and the role of the tensor; the role is empty for a tensor that is not of a LoRA."""
    for end, role in _ENDS.items():
        if key.endswith(end):
            return key.removesuffix(end), role
    return key, ""


def _weight_name(layer: str) -> str:
    """The layer's name in any of the layouts -> the name of its weight in AnimateDiff's files."""
    name = _PREFIX.sub("", layer)
    if name.startswith(_KOHYA):
        name = ".".join(_PARTS.findall(name.removeprefix(_KOHYA)))
    name = name.replace(".processor.", ".")
    name = f"{name}.0.weight" if name.endswith(".to_out") else f"{name}.weight"
    (name,) = from_hotshot({name: None})  # type: ignore[dict-item]  # only the name counts
    if ".temporal_transformer." not in name:
        (name,) = from_diffusers({name: None})  # type: ignore[dict-item]
    return name


def _layer(name: str, part: Mapping[str, Tensor], source: str) -> LoraLayer:
    missing = [role for role in (DOWN, UP) if role not in part]
    if missing:
        raise CheckpointError(f"{source} misses the {missing[0]} matrix of {name}; the file is damaged, get it again")
    down, up = part[DOWN], part[UP]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        sizes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise CheckpointError(f"{source} has matrices of {sizes} for {name}, which do not fit each other; get it again")
    alpha = part.get(ALPHA)
    if alpha is not None and alpha.numel() != 1:
        raise CheckpointError(f"{source} has {alpha.numel()} numbers as alpha of {name}, instead of one; get it again")
    return LoraLayer(down, up, None if alpha is None else float(alpha))


def _other(weights: Mapping[str, Tensor], has_layers: bool) -> str:
    if has_layers:
        return "it is a LoRA for the image model; load it with ComfyUI's Load LoRA"
    if any(".motion_modules." in key or ".temporal_attentions." in key for key in weights):
        return "it is a motion model; load it with Load Motion Model"
    return f"its first keys are {', '.join(list(weights)[:3]) or 'none'}; a motion LoRA has keys with lora in them"
