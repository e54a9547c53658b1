"""The file of the pocket Stable Diffusion: latent-diffusion's key layout with small sizes, which its header states.

It differs from a Stable Diffusion checkpoint in one point: the token table contains only the rows of words that occur
in captions, and one more row for all other words; `TOKEN_IDS` lists the CLIP ids of the rows. `expand_tokens` restores
a full table.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .ldm_names import control_prefixes, inverse, rename, unet_prefixes, vae_to_ldm

SYSTEM = "pocket"
CONTROL_SYSTEM = "pocket_control"  # a ControlNet for the pocket, whose header states the pocket's sizes
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
CONTROL = "control_model."
TOKEN_TABLE = TEXT + "text_model.embeddings.token_embedding.weight"
TOKEN_IDS = "token_ids"
CLIP_VOCABULARY = 49408
SCALE = 0.18215


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
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**settings)


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
