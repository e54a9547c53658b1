"""Weight layouts of other people's motion files, as pure functions on a state dict.

A layout is read in three steps: `unwrap` takes off what a trainer wrapped around the weights, `identify` names the
layout or raises for everything that is not a motion model, and one importer per layout gives our config and weights.
Keys inside the package are AnimateDiff's own.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

Weights = Mapping[str, Tensor]


class CheckpointError(ValueError):
    """A weight file cannot be used; the message says what it is, what is needed, and what to do."""


ANIMATEDIFF = "animatediff"
DIFFUSERS = "diffusers"

_SLOT = re.compile(r"^(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.motion_modules\.\d+\.")
_TO_DIFFUSERS = (
    ("temporal_transformer.", ""),
    ("attention_blocks.0.pos_encoder.pe", "pos_embed.pe"),
    ("attention_blocks.0.", "attn1."),
    ("attention_blocks.1.", "attn2."),
    ("norms.0.", "norm1."),
    ("norms.1.", "norm2."),
    ("ff_norm.", "norm3."),
)

# (what betrays it in a key, what it is, what to do), first match wins
_FOREIGN: tuple[tuple[Callable[[str], bool], str, str], ...] = (
    (
        lambda k: "lora" in k and ("motion_modules" in k or "temporal" in k),
        "a motion LoRA",
        "it changes a motion model and cannot replace one; load a motion model here",
    ),
    (lambda k: "lora" in k, "a LoRA for the image model", "load it with ComfyUI's LoRA loader"),
    (
        lambda k: k.startswith(("controlnet_", "input_hint_block.", "control_model.")),
        "a ControlNet or SparseCtrl",
        "it guides a motion model and cannot replace one; load a motion model here",
    ),
    (
        lambda k: ".temporal_attentions." in k,
        "a Hotshot-XL motion model",
        "it belongs to SDXL; StillMotion reads AnimateDiff motion models for SD 1.5",
    ),
    (
        lambda k: ".temp_convs." in k or ".temp_attn." in k,
        "a VidRD (Reuse and Diffuse) model",
        "this version of StillMotion does not read it; load an AnimateDiff motion model",
    ),
    (
        lambda k: k.startswith(("img_encoder.", "motion_embedding.", "fps_embedding.")),
        "an image-conditioned motion model (AnimateLCM-I2V or FancyVideo)",
        "it has parts that StillMotion does not run; load a text-to-video motion model",
    ),
    (
        lambda k: k in ("conv_in.weight", "conv_in.bias"),
        "a PIA motion model or a whole U-Net",
        "it changes the first layer of the image model, which StillMotion does not do; load a text-to-video model",
    ),
    (
        lambda k: ".qkv_merge." in k,
        "a CameraCtrl motion model",
        "it needs a camera encoder that StillMotion does not run; load a text-to-video motion model",
    ),
    (
        lambda k: k.startswith(("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")),
        "a whole Stable Diffusion checkpoint",
        "load it with ComfyUI's checkpoint loader, and a motion model here",
    ),
    (
        lambda k: k.startswith(("encoder.", "decoder.", "quant_conv.", "text_model.")),
        "a VAE or a text encoder",
        "load it with ComfyUI's own loaders, and a motion model here",
    ),
)


def unwrap(weights: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without the trainer's wrapping: `state_dict`, `module`, the prefix `module.`.

    From a training checkpoint that holds the whole U-Net only the motion modules are kept.
    """
    for name in ("state_dict", "module", "state_dict", "motion_module", "unet"):
        inner = weights.get(name)
        if isinstance(inner, Mapping):
            weights = inner
    tensors = {k.removeprefix("module."): v for k, v in weights.items() if isinstance(v, Tensor)}
    tensors = {k.removeprefix("unet."): v for k, v in tensors.items()}
    motion = {k: v for k, v in tensors.items() if ".motion_modules." in k}
    if motion and any(".resnets." in k for k in tensors):
        return motion
    return tensors


def identify(weights: Weights, source: str) -> str:
    """The layout's name. CheckpointError for everything but a motion model of a layout we read, saying what it is.

    `source` names the file in messages.
    """
    for betrays, what, advice in _FOREIGN:
        if any(betrays(key) for key in weights):
            raise CheckpointError(f"{source} is {what}: {advice}")
    if any(_SLOT.match(key) and ".temporal_transformer." in key for key in weights):
        return ANIMATEDIFF
    if any(_SLOT.match(key) and ".transformer_blocks.0.attn1." in key for key in weights):
        return DIFFUSERS
    raise CheckpointError(
        f"{source} holds no motion model: its first keys are {', '.join(list(weights)[:5]) or 'none'}; needed are "
        "keys like down_blocks.0.motion_modules.0.temporal_transformer... (AnimateDiff) or "
        "down_blocks.0.motion_modules.0.transformer_blocks... (diffusers)"
    )


def from_diffusers(weights: Weights) -> dict[str, Tensor]:
    """diffusers' MotionAdapter keys -> AnimateDiff's. Its one positional table serves both attentions."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        head = _SLOT.match(key)
        if head is None:
            renamed[key] = tensor
            continue
        tail = key[head.end() :]
        for ours, theirs in _TO_DIFFUSERS[1:]:
            tail = re.sub(rf"^(transformer_blocks\.\d+\.){re.escape(theirs)}", rf"\g<1>{ours}", tail)
        key = f"{head[0]}temporal_transformer.{tail}"
        renamed[key] = tensor
        if key.endswith(".attention_blocks.0.pos_encoder.pe"):
            renamed[key.replace(".attention_blocks.0.", ".attention_blocks.1.")] = tensor.clone()
    return renamed


def to_diffusers(weights: Weights) -> dict[str, Tensor]:
    """AnimateDiff's keys -> diffusers' MotionAdapter keys, which have one positional table for both attentions."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        if key.endswith(".attention_blocks.1.pos_encoder.pe"):
            continue
        for ours, theirs in _TO_DIFFUSERS:
            key = key.replace(f".{ours}", f".{theirs}" if theirs else ".")
        renamed[key] = tensor
    return renamed
