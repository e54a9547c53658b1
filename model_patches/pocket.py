"""The file of the pocket Stable Diffusion: latent-diffusion's key layout with small sizes, which its header states.

It differs from a Stable Diffusion checkpoint in one point: the token table contains only the rows of words that occur
in captions, and one more row for all other words; `TOKEN_IDS` lists the CLIP ids of the rows. `expand_tokens` restores
a full table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .core.config import known
from .ldm_names import control_prefixes, inverse, rename, unet_prefixes, vae_to_ldm

SYSTEM = "pocket"
CONTROL_SYSTEM = "pocket_control"  # a ControlNet for the pocket, whose header states the pocket's sizes
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
CONTROL = "control_model."
TOKEN_TABLE = TEXT + "text_model.embeddings.token_embedding.weight"
TOKEN_IDS = "token_ids"
CLIP_VOCABULARY = 49408
SCALE = 0.18215
MOST_LAYERS = 64  # of a block


@dataclass(frozen=True, kw_only=True)
class PocketConfig:
    """Sizes of the three networks, from the header of the file."""

    unet_channels: tuple[int, ...] = (64, 128, 128)
    unet_layers: int = 1
    unet_attention: tuple[bool, ...] = (False, True, True)
    heads: int = 4
    context: int = 128
    text_layers: int = 2
    text_heads: int = 4
    vae_channels: tuple[int, ...] = (64, 64, 128)
    vae_layers: int = 1

    @property
    def downscale(self) -> int:
        """Pixels of an image per latent, along one side."""
        return 2 ** (len(self.vae_channels) - 1)

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PocketConfig":
        """ValueError for an unknown name, or a value that no size has."""
        settings = known(cls, values, "pocket config")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return cls(**plain)


def check_sizes(config: PocketConfig, shapes: Mapping[str, Sequence[int]], networks: Sequence[str]) -> None:
    """ValueError unless the weights of some networks (UNET, VAE, TEXT, CONTROL) have the sizes of a config, so that no
    network is built that is larger than its file. shapes: name of a weight -> its shape."""
    expected: dict[str, tuple[int, int]] = {}  # name -> axis, size
    for network in networks:
        expected |= _SIZES[network](config)
    for name, (axis, size) in expected.items():
        shape = shapes.get(name)
        if shape is None:
            raise ValueError(f"its sizes need the weight {name}, which is missing")
        if len(shape) <= axis or shape[axis] != size:
            raise ValueError(f"{name} has the shape {tuple(shape)}, but its sizes need {size} along axis {axis}")


def _unet_sizes(config: PocketConfig, prefix: str = UNET) -> dict[str, tuple[int, int]]:
    layers, sizes = config.unet_layers, {}
    _check_blocks(config.unet_channels, layers, config.heads)
    if len(config.unet_attention) != len(config.unet_channels):
        raise ValueError("unet_attention needs one value for each of unet_channels")
    for i, (channels, attention) in enumerate(zip(config.unet_channels, config.unet_attention, strict=True)):
        for j in range(layers):
            name = f"{prefix}input_blocks.{1 + i * (layers + 1) + j}"
            sizes[f"{name}.0.in_layers.2.weight"] = 0, channels
            if attention:
                sizes[f"{name}.1.transformer_blocks.0.attn2.to_k.weight"] = 1, config.context
    return sizes


def _vae_sizes(config: PocketConfig) -> dict[str, tuple[int, int]]:
    _check_blocks(config.vae_channels, config.vae_layers, 1)
    return {
        f"{VAE}encoder.down.{i}.block.{j}.conv1.weight": (0, channels)
        for i, channels in enumerate(config.vae_channels)
        for j in range(config.vae_layers)
    }


def _text_sizes(config: PocketConfig) -> dict[str, tuple[int, int]]:
    _check_blocks((config.context,), config.text_layers, config.text_heads)
    layers = range(config.text_layers)
    sizes = {f"{TEXT}text_model.encoder.layers.{i}.mlp.fc1.weight": (1, config.context) for i in layers}
    return sizes | {TOKEN_TABLE: (1, config.context), f"{TEXT}text_model.final_layer_norm.weight": (0, config.context)}


_SIZES: dict[str, Callable[[PocketConfig], dict[str, tuple[int, int]]]] = {
    UNET: _unet_sizes,
    VAE: _vae_sizes,
    TEXT: _text_sizes,
    CONTROL: lambda config: _unet_sizes(config, CONTROL),
}


def _check_blocks(channels: Sequence[int], layers: int, heads: int) -> None:
    if not channels or layers < 1 or heads < 1 or any(c < 1 or c % heads for c in channels):
        raise ValueError(f"there is no network of {layers} layers of {tuple(channels)} channels with {heads} heads")
    if layers > MOST_LAYERS or any(c % channels[0] for c in channels):
        raise ValueError(f"the channels {tuple(channels)} are not multiples of the first, or there are too many layers")


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names start with a prefix, which is removed."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def expand_tokens(table: Tensor, ids: Tensor, vocabulary: int = CLIP_VOCABULARY) -> Tensor:
    """(rows + 1, d) -> (vocabulary, d): row i goes to ids[i], the last row to all other words."""
    if len(table) != len(ids) + 1:
        raise ValueError(f"the token table has {len(table)} rows for {len(ids)} ids; it needs one more row than ids")
    full = table[-1:].repeat(vocabulary, 1)
    full[ids.long()] = table[:-1]
    return full


def stock_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the file, with a token table of CLIP's full size."""
    full = {k: v for k, v in weights.items() if k != TOKEN_IDS}
    full[TOKEN_TABLE] = expand_tokens(weights[TOKEN_TABLE], weights[TOKEN_IDS])
    return full


def compact(
    config: PocketConfig, unet: dict[str, Tensor], vae: dict[str, Tensor], text: dict[str, Tensor], ids: list[int]
) -> dict[str, Tensor]:
    """The weights of one file in half precision, with latent-diffusion's names, from the three networks."""
    blocks = len(config.unet_channels)
    ldm_unet = rename(unet, inverse(unet_prefixes(blocks, config.unet_layers, config.unet_attention)))
    weights = {UNET + k: v for k, v in ldm_unet.items()}
    weights |= {VAE + k: v for k, v in vae_to_ldm(vae, len(config.vae_channels), config.vae_layers).items()}
    prefix = "" if any(k.startswith("text_model.") for k in text) else "text_model."
    weights |= {TEXT + prefix + k: v for k, v in text.items() if not k.endswith("position_ids")}
    halves = {k: v.detach().half().contiguous().cpu() for k, v in weights.items()}
    return halves | {TOKEN_IDS: torch.tensor(ids, dtype=torch.int32)}


def compact_control(config: PocketConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file in half precision, with latent-diffusion's names, from diffusers' ControlNetModel."""
    names = inverse(control_prefixes(len(config.unet_channels), config.unet_layers, config.unet_attention))
    return {CONTROL + k: v.detach().half().contiguous().cpu() for k, v in rename(weights, names).items()}
