"""Files of ControlNets and of SparseCtrl: pure functions on a state dict.

A ControlNet of the same base model has the same layers as a retention branch without temporal layers, and can be its
initial weights. Two layouts are supported: latent-diffusion's (with the prefix `control_model.` or without) and
diffusers'. A SparseCtrl network has AnimateDiff's names, with `temporal_transformer` or, in diffusers, without.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .building import build
from .dreamvideo.config import RetentionConfig
from .dreamvideo.retention import RetentionBranch
from .layouts import CheckpointError, check_weights, from_diffusers, with_position_tables
from .ldm_names import control_prefixes, rename
from .sparsectrl.config import LATENT, PIXELS, SparseConfig
from .sparsectrl.model import SparseControl

LDM, DIFFUSERS = "input_hint_block.", "controlnet_cond_embedding."
# A ControlNet file does not contain the number of heads; these are the values of Stable Diffusion 1.5 and 2.
HEADS, CHANNELS_OF_A_HEAD = 8, 64
SPARSE_FRAMES = 32  # positions of a SparseCtrl network whose file does not contain its tables


def from_controlnet(weights: Mapping[str, Tensor], source: str) -> tuple[RetentionConfig, dict[str, Tensor]]:
    """The config of a ControlNet, inferred from its names and shapes, and its weights under our names.

    CheckpointError unless it is a ControlNet of Stable Diffusion's U-Net for RGB images.
    """
    tensors = {k.removeprefix("control_model."): v for k, v in weights.items()}
    if any(k.startswith(LDM) for k in tensors):
        tensors = _from_ldm(tensors, source)
    elif not any(k.startswith(DIFFUSERS) for k in tensors):
        raise CheckpointError(
            f"{source} is not a ControlNet: its first keys are {', '.join(list(tensors)[:3]) or 'none'}; a ControlNet "
            f"has keys like {LDM}0.weight or {DIFFUSERS}conv_in.weight"
        )
    try:
        config = _retention_config(tensors)
        branch = build(lambda: RetentionBranch(config), len(tensors))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source} is a kind of ControlNet that cannot initialise a branch ({error})") from error
    check_weights(branch, tensors, source)
    return config, tensors


def is_sparsectrl(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a SparseCtrl network: a ControlNet with temporal layers."""
    return any(k.startswith("controlnet_") for k in weights) and any(".motion_modules." in k for k in weights)


def from_sparsectrl(weights: Mapping[str, Tensor], source: str) -> tuple[SparseConfig, dict[str, Tensor]]:
    """The config of a SparseCtrl network, inferred from its names and shapes, and its weights under our names.

    CheckpointError, saying what the file is, unless it is such a network.
    """
    if not is_sparsectrl(weights):
        kind = "a ControlNet without temporal layers; load it with ComfyUI's Load ControlNet Model"
        if not any(k.startswith(("controlnet_", "control_model.", LDM)) for k in weights):
            kind = f"something else: its first keys are {', '.join(list(weights)[:3]) or 'none'}"
        raise CheckpointError(f"{source} is not a SparseCtrl network, but {kind}")
    tensors = dict(weights)
    if not any(".temporal_transformer." in k for k in tensors):
        tensors = from_diffusers(tensors)
    tensors = {f"temporal.{k}" if ".motion_modules." in k else k: v for k, v in tensors.items()}
    try:
        config = _sparse_config(tensors)
        network = build(lambda: SparseControl(config), len(tensors))
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{source} is an incomplete SparseCtrl network ({error}); get it again") from error
    tensors = with_position_tables(tensors, config.max_frames)
    check_weights(network, tensors, source)
    return config, tensors


def _retention_config(weights: Mapping[str, Tensor]) -> RetentionConfig:
    sizes = _sizes(weights)
    heads = tuple(
        max(1, c // CHANNELS_OF_A_HEAD) if sizes["linear_projection"] else HEADS for c in sizes["block_channels"]
    )
    return RetentionConfig(**sizes, heads=heads, hint_channels=_hint_channels(weights), temporal="none")


def _sparse_config(weights: Mapping[str, Tensor]) -> SparseConfig:
    sizes, pixels = _sizes(weights), f"{DIFFUSERS}conv_in.weight" in weights
    if pixels:
        sizes["hint_channels"] = _hint_channels(weights)
    tables = [v.shape[1] for k, v in weights.items() if k.endswith(".pos_encoder.pe")]
    return SparseConfig(
        **sizes,
        heads=(HEADS,) * len(sizes["block_channels"]),
        hint=PIXELS if pixels else LATENT,
        max_frames=tables[0] if tables else SPARSE_FRAMES,
        attentions=1 + max(_numbers(weights, r".*\.attention_blocks\.(\d+)\.")),
    )


def _from_ldm(weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    resnets = [k for k in weights if re.match(r"input_blocks\.\d+\.0\.in_layers\.0\.weight$", k)]
    downs = [k for k in weights if re.match(r"input_blocks\.\d+\.0\.op\.weight$", k)]
    blocks, numbers = len(downs) + 1, {int(k.split(".")[1]) for k in resnets}
    layers = len(resnets) // blocks
    starts = (1 + i * (layers + 1) for i in range(blocks))
    attention = tuple(f"input_blocks.{start}.1.norm.weight" in weights for start in starts)
    hints = max((int(k.split(".")[1]) for k in weights if k.startswith(LDM)), default=0)
    if not numbers or len(resnets) % blocks or hints != 14:
        raise CheckpointError(f"{source} is a ControlNet whose blocks differ from Stable Diffusion's")
    try:
        return rename(weights, control_prefixes(blocks, layers, attention))
    except ValueError as error:
        raise CheckpointError(f"{source} is not a ControlNet for Stable Diffusion ({error})") from error


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields that both configs have, from weights with diffusers' names."""
    blocks = range(1 + max(_numbers(weights, r"down_blocks\.(\d+)\.")))
    channels = tuple(weights[f"down_blocks.{i}.resnets.0.norm2.weight"].shape[0] for i in blocks)
    context = weights["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    linear = weights["mid_block.attentions.0.proj_in.weight"].ndim == 2
    return {
        "block_channels": channels,
        "attention": tuple(f"down_blocks.{i}.attentions.0.norm.weight" in weights for i in blocks),
        "layers_per_block": 1 + max(_numbers(weights, r"down_blocks\.0\.resnets\.(\d+)\.")),
        "context_dim": context,
        "linear_projection": linear,
    }


def _hint_channels(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    hints = 1 + max(_numbers(weights, r"controlnet_cond_embedding\.blocks\.(\d+)\."))
    encoder = [weights[f"{DIFFUSERS}blocks.{i}.weight"].shape[0] for i in range(1, hints, 2)]
    return (weights[f"{DIFFUSERS}conv_in.weight"].shape[0], *encoder)


def _numbers(weights: Mapping[str, Tensor], pattern: str) -> list[int]:
    return [int(match[1]) for key in weights if (match := re.match(pattern, key))] or [0]
