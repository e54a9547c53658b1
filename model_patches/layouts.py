"""Weight layouts of other projects' motion files, as pure functions on a state dict.

A file is read in three steps: `unwrap` removes what a trainer wrapped around the weights, `identify` names the layout
or raises for everything that is not a motion model, and one importer per layout returns our config and weights. The
keys inside the package are AnimateDiff's for motion models and those of the authors' checkpoint for VidRD.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .building import build, check_counts
from .core.config import MotionConfig
from .core.temporal import MotionModel, sinusoid
from .vidrd.config import DecoderConfig, VidrdConfig
from .vidrd.decoder import TemporalDecoder
from .vidrd.model import VidrdModel, is_temporal

Weights = Mapping[str, Tensor]


class CheckpointError(ValueError):
    """A weight file cannot be used; the message says what the file is, what is needed, and what to do."""


ANIMATEDIFF = "animatediff"
DIFFUSERS = "diffusers"
HOTSHOT = "hotshot"
VIDRD = "vidrd"
VIDRD_DECODER = "vidrd decoder"
SDXL_CHANNELS = (320, 640, 1280)
LINEAR_BETAS: dict[str, Any] = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
# of AnimateDiff-SDXL (beta); of SDXL itself, with which Hotshot-XL was trained
SDXL_BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.020}
HOTSHOT_BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V1_FRAMES = 24  # positions of AnimateDiff v1; later versions have 32
ANIMATELCM_FRAMES = 64  # positions of AnimateLCM, whose file does not contain its table

_DECODER = "decoder.up_blocks."
_BLOCK = re.compile(r"^(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.")
_IN_UNET = re.compile(r"^(model\.)?diffusion_model\.(?=(down_blocks|up_blocks|mid_block)\.)")
_SLOT = re.compile(r"^(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.motion_modules\.\d+\.")
_HOTSHOT_SLOT = re.compile(r"^((?:down_blocks\.\d+|up_blocks\.\d+)\.)temporal_attentions\.(\d+)\.")
_TO_DIFFUSERS = (
    ("temporal_transformer.", ""),
    ("attention_blocks.0.pos_encoder.pe", "pos_embed.pe"),
    ("attention_blocks.0.", "attn1."),
    ("attention_blocks.1.", "attn2."),
    ("norms.0.", "norm1."),
    ("norms.1.", "norm2."),
    ("ff_norm.", "norm3."),
)

# (test of a key, what the file is, what to do); the first match wins
_FOREIGN: tuple[tuple[Callable[[str], bool], str, str], ...] = (
    (
        lambda k: "lora" in k and ("motion_modules" in k or "temporal" in k),
        "a motion LoRA",
        "it changes a motion model and cannot replace one; load it with Motion LoRA, and a motion model here",
    ),
    (lambda k: "lora" in k, "a LoRA for the image model", "load it with ComfyUI's LoRA loader"),
    (
        lambda k: k.startswith(("controlnet_", "input_hint_block.", "control_model.")),
        "a ControlNet or SparseCtrl",
        "load it with ComfyUI's Load ControlNet Model or with Load SparseCtrl, and a motion model here",
    ),
    (
        lambda k: k.startswith(("img_encoder.", "motion_embedding.", "fps_embedding.")),
        "an image-conditioned motion model (AnimateLCM-I2V or FancyVideo)",
        "it has parts that StillMotion does not support; load a text-to-video motion model",
    ),
    (
        lambda k: k in ("conv_in.weight", "conv_in.bias"),
        "a PIA motion model or a whole U-Net",
        "it changes the first layer of the image model, which StillMotion does not do; load a text-to-video model",
    ),
    (
        lambda k: ".qkv_merge." in k,
        "a CameraCtrl motion model",
        "it needs a camera encoder that StillMotion does not support; load a text-to-video motion model",
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
    """The tensors of a checkpoint without a trainer's wrapping: `state_dict`, `module`, the prefix `module.`, and the
    counters of a trainer, such as `global_step`.

    Of a training checkpoint that contains the whole U-Net, only the motion modules are returned.
    """
    for name in ("state_dict", "module", "state_dict", "motion_module", "unet", "controlnet"):
        inner = weights.get(name)
        if isinstance(inner, Mapping):
            weights = inner
    tensors = {k: v for k, v in weights.items() if isinstance(k, str) and isinstance(v, Tensor)}
    tensors = {k: v for k, v in tensors.items() if "." in k or v.numel() > 1}
    tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    tensors = {k.removeprefix("unet."): v for k, v in tensors.items()}
    motion = {k: v for k, v in tensors.items() if ".motion_modules." in k or _HOTSHOT_SLOT.match(k)}
    control = any(k.startswith("controlnet_") for k in tensors)
    if motion and not control and any(".resnets." in k for k in tensors):
        return motion
    return _inner_motion(motion) if motion and all(_IN_UNET.match(k) for k in motion) else tensors


def _inner_motion(motion: Weights) -> dict[str, Tensor]:
    """Motion modules that a file has within a U-Net of latent-diffusion, without that prefix."""
    return {_IN_UNET.sub("", k): v for k, v in motion.items()}


def identify(weights: Weights, source: str) -> str:
    """The name of the layout. CheckpointError, saying what the file is, unless it is a motion model we can read.

    source: name of the file, for messages.
    """
    if any(".temp_convs." in key for key in weights):
        decoder = any(key.startswith(_DECODER) and ".temp_convs." in key for key in weights)
        return VIDRD_DECODER if decoder else VIDRD
    for matches, kind, advice in _FOREIGN:
        if any(matches(key) for key in weights):
            raise CheckpointError(f"{source} is {kind}: {advice}")
    if any(_HOTSHOT_SLOT.match(key) for key in weights):
        return HOTSHOT
    if any(_SLOT.match(key) and ".temporal_transformer." in key for key in weights):
        return ANIMATEDIFF
    if any(_SLOT.match(key) and ".transformer_blocks.0.attn1." in key for key in weights):
        return DIFFUSERS
    raise CheckpointError(
        f"{source} is not a motion model: its first keys are {_first(weights)}; a motion model "
        "has keys like down_blocks.0.motion_modules.0.temporal_transformer... (AnimateDiff) or "
        "down_blocks.0.motion_modules.0.transformer_blocks... (diffusers)"
    )


def _first(weights: Weights) -> str:
    return ", ".join(key[:100] for key in list(weights)[:5]) or "none"


def from_diffusers(weights: Weights) -> dict[str, Tensor]:
    """diffusers' MotionAdapter keys -> AnimateDiff's. All attentions of a module get its one positional table."""
    second = any(".attn2." in key and _SLOT.match(key) for key in weights)
    renamed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        head = _SLOT.match(key)
        if head is None:
            renamed[key] = tensor
            continue
        tail = key[head.end() :]
        for name, diffusers_name in _TO_DIFFUSERS[1:]:
            tail = re.sub(rf"^(transformer_blocks\.\d+\.){re.escape(diffusers_name)}", rf"\g<1>{name}", tail)
        key = f"{head[0]}temporal_transformer.{tail}"
        renamed[key] = tensor
        if second and key.endswith(".attention_blocks.0.pos_encoder.pe"):
            renamed[key.replace(".attention_blocks.0.", ".attention_blocks.1.")] = tensor.clone()
    return renamed


def from_hotshot(weights: Weights) -> dict[str, Tensor]:
    """Hotshot-XL's keys -> AnimateDiff's: the same layers under other names."""
    renamed = (_HOTSHOT_SLOT.sub(r"\1motion_modules.\2.temporal_transformer.", key) for key in weights)
    names = (key.replace(".pos_encoder.positional_encoding", ".pos_encoder.pe") for key in renamed)
    return dict(zip(names, weights.values(), strict=True))


def with_position_tables(weights: Weights, frames: int = ANIMATELCM_FRAMES) -> dict[str, Tensor]:
    """The weights with sinusoidal tables for so many frames, if the file leaves them out as AnimateLCM's does."""
    if any(key.endswith(".pos_encoder.pe") for key in weights):
        return dict(weights)
    tables = {}
    for key, weight in weights.items():
        if ".temporal_transformer." in key and key.endswith(".to_q.weight"):
            table = sinusoid(frames, weight.shape[1])[None]
            tables[key.replace(".to_q.weight", ".pos_encoder.pe")] = table.to(weight.device, weight.dtype)
    return {**weights, **tables}


def to_diffusers(weights: Weights) -> dict[str, Tensor]:
    """AnimateDiff's keys -> diffusers' MotionAdapter keys, which have one positional table for both attentions."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        if key.endswith(".attention_blocks.1.pos_encoder.pe"):
            continue
        for name, diffusers_name in _TO_DIFFUSERS:
            key = key.replace(f".{name}", f".{diffusers_name}" if diffusers_name else ".")
        renamed[key] = tensor
    return renamed


def motion_config(weights: Weights, source: str, layout: str = ANIMATEDIFF) -> dict[str, Any]:
    """The config of weights with AnimateDiff's keys, inferred from their names and shapes.

    layout: that of the file, on which the noise schedule depends. Such files contain neither the number of heads, which
    is 8 in all of them, nor the noise schedule.
    """
    channels, layers = _down_blocks(weights, source)
    sdxl = HOTSHOT_BETAS if layout == HOTSHOT else SDXL_BETAS
    mid_block = any(k.startswith("mid_block.") for k in weights)
    frames = next((v.shape[1] for k, v in weights.items() if k.endswith(".pos_encoder.pe")), ANIMATELCM_FRAMES)
    # SDXL's U-Net has three levels; Hotshot-XL has 24 positions, too, and normalises every frame
    is_v1 = frames == V1_FRAMES and not mid_block and len(channels) != len(SDXL_CHANNELS)
    check_counts({"layers": layers}, len(weights))
    config = MotionConfig(
        block_channels=channels,
        layers_per_block=layers,
        mid_block=mid_block,
        max_frames=frames,
        image_norm="per_clip" if is_v1 else "per_frame",
        **(sdxl if channels == SDXL_CHANNELS else LINEAR_BETAS),
    )
    check_weights(build(lambda: MotionModel(config), len(weights)), weights, source)
    return config.to_dict()


def _down_blocks(weights: Weights, source: str) -> tuple[tuple[int, ...], int]:
    """Channels of each down block and the number of layers per block, for example ((320, 640), 2)."""
    channels: dict[int, int] = {}
    layers = 0
    for key, tensor in weights.items():
        place = re.match(r"down_blocks\.(\d{1,9})\.motion_modules\.(\d{1,9})\.temporal_transformer\.norm\.weight$", key)
        if place:
            channels[int(place[1])] = tensor.shape[0]
            layers = max(layers, int(place[2]) + 1)
    if sorted(channels) != list(range(len(channels))) or not channels:
        raise CheckpointError(
            f"{source} is incomplete: it has motion modules only for the down blocks {sorted(channels)}; get it again"
        )
    return tuple(channels[i] for i in sorted(channels)), layers


def from_vidrd(weights: Weights) -> dict[str, Tensor]:
    """The trained weights of a VidRD checkpoint, which contains the whole U-Net under diffusers' names, or more."""
    keys = (k for k in weights if _BLOCK.match(k) and (is_temporal(k) or ".transformer_blocks." in k))
    return {key: weights[key] for key in keys}


def from_vidrd_decoder(weights: Weights) -> dict[str, Tensor]:
    """The Temp-Convs of the autoencoder that VidRD's authors fine-tuned."""
    return {k.removeprefix("decoder."): v for k, v in weights.items() if k.startswith(_DECODER) and ".temp_convs." in k}


def vidrd_config(weights: Weights, source: str) -> dict[str, Any]:
    """The config of VidRD weights, inferred from their names and shapes.

    They do not contain the heads: 64 channels per head if the text is 1024 wide (Stable Diffusion 2), else 8 heads.
    """
    channels, layers = _vidrd_blocks(weights, source, "down_blocks")
    context = next((v.shape[1] for k, v in weights.items() if k.endswith(".attn2.to_k.weight")), None)
    blocks = range(len(channels))
    check_counts({"layers": max(layers, _conv_layers(weights))}, len(weights))
    config = VidrdConfig(
        block_channels=channels,
        attention=tuple(any(k.startswith(f"down_blocks.{i}.attentions.") for k in weights) for i in blocks),
        heads=tuple(c // 64 if context in (None, 1024) else 8 for c in channels),
        layers_per_block=layers,
        context_dim=context or 1024,
        spatial=context is not None,
        conv_layers=_conv_layers(weights),
    )
    check_weights(build(lambda: VidrdModel(config), len(weights)), weights, source)
    return config.to_dict()


def vidrd_decoder_config(weights: Weights, source: str) -> dict[str, Any]:
    """The config of the Temp-Convs in a decoder. The published ones use statistics over the clip."""
    channels, layers = _vidrd_blocks(weights, source, "up_blocks")
    check_counts({"layers": max(layers, _conv_layers(weights))}, len(weights))
    config = DecoderConfig(
        block_channels=channels[::-1],
        layers_per_block=layers - 1,
        conv_layers=_conv_layers(weights),
        group_norm="per_clip",
    )
    check_weights(build(lambda: TemporalDecoder(config), len(weights)), weights, source)
    return config.to_dict()


def _vidrd_blocks(weights: Weights, source: str, side: str) -> tuple[tuple[int, ...], int]:
    """Channels of each block of a side, and the number of Temp-Convs per block."""
    channels: dict[int, int] = {}
    layers = 0
    for key, tensor in weights.items():
        place = re.match(rf"{side}\.(\d{{1,9}})\.temp_convs\.(\d{{1,9}})\.convs\.0\.weight$", key)
        if place:
            channels[int(place[1])] = tensor.shape[0]
            layers = max(layers, int(place[2]) + 1)
    if sorted(channels) != list(range(len(channels))) or not channels:
        raise CheckpointError(
            f"{source} is incomplete: it has Temp-Convs only for {side} {sorted(channels)}; get it again"
        )
    return tuple(channels[i] for i in sorted(channels)), layers


def _conv_layers(weights: Weights) -> int:
    """Convolutions in a Temp-Conv: each has four entries in `convs`, two of them with weights."""
    numbers = [int(place[1]) for k in weights if (place := re.search(r"\.temp_convs\.\d+\.convs\.(\d{1,9})\.", k))]
    return max(numbers) // 4 + 1


def animatediff_version(config: Mapping[str, Any]) -> str:
    """The version of a release, from its channels, its middle block and the length of its positional table."""
    if tuple(config["block_channels"]) == SDXL_CHANNELS:
        return "SDXL"
    versions = {(False, 24): "v1", (True, 32): "v2", (False, 32): "v3"}
    return versions.get((config["mid_block"], config["max_frames"]), f"of {config['max_frames']} frames")


def check_weights(model: nn.Module, weights: Weights, source: str) -> None:
    """CheckpointError unless the weights have exactly the keys and shapes of the model."""
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    missing = sorted(set(expected) - set(weights))
    surplus = sorted(set(weights) - set(expected))
    shapes = {k: tuple(v.shape) for k, v in weights.items()}
    wrong = [f"{k} {shapes[k]} instead of {expected[k]}" for k in expected if k in shapes and shapes[k] != expected[k]]
    for problem, keys in (("misses", missing), ("has unknown", surplus), ("has wrong sizes:", wrong)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise CheckpointError(
                f"{source} {problem} {', '.join(key[:150] for key in keys[:3])}{more}; the file is damaged or of "
                "another kind; get it again"
            )
