"""The frozen image models that a HARIVO model is trained on: the pocket model, Stable Diffusion 1.5."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..model_patches.diffusers_host.pocket import load_networks, load_pocket, new_text_encoder, new_unet, new_vae
from ..model_patches.pocket import PocketConfig
from .config import BUNDLED, RANDOM, BaseTable, ConfigError
from .data.latents import weights_hash

POCKET = Path(__file__).resolve().parents[1] / "pocket"
BUNDLED_POCKET = POCKET / "pocket.safetensors"
TOKENS, END = 77, 49407
# The sizes of Stable Diffusion 1.5, in the words of the pocket's config.
SD15 = PocketConfig(
    unet_channels=(320, 640, 1280, 1280),
    unet_layers=2,
    unet_attention=(True, True, True, False),
    heads=8,
    context=768,
    text_layers=12,
    text_heads=12,
    vae_channels=(128, 256, 512, 512),
    vae_layers=2,
)


@dataclass(frozen=True)
class Base:
    """A frozen image model: networks, sizes, and how a caption becomes token ids (n, 77)."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel
    config: PocketConfig
    ids: Callable[[Sequence[str]], Tensor]
    hash: str  # of the U-Net, before it was made smaller


def load(table: BaseTable, tokenizer: Path) -> Base:
    """The base of a config, frozen, on the CPU. ConfigError where there are no such weights."""
    networks = _pocket(table.weights) if table.kind == "pocket" else _sd15(table.weights)
    unet, vae, text, config = networks
    for module in (unet, vae, text):
        module.eval().requires_grad_(False)
    digest = weights_hash(unet)
    if table.half:  # not the autoencoder: its hash tells whether cached latents are its own
        unet.to(torch.bfloat16)
        text.to(torch.bfloat16)
    if table.checkpointing:
        unet.enable_gradient_checkpointing()
    return Base(unet, vae, text, config, clip_ids(tokenizer), digest)


def clip_ids(tokenizer: Path) -> Callable[[Sequence[str]], Tensor]:
    """Captions -> CLIP's ids (n, 77), padded with the end token as Stable Diffusion's tokenizer does."""
    clip = CLIPTokenizer.from_pretrained(str(tokenizer))

    def ids(captions: Sequence[str]) -> Tensor:
        rows = [clip(text, truncation=True, max_length=TOKENS)["input_ids"] for text in captions]
        return torch.tensor([row + [END] * (TOKENS - len(row)) for row in rows])

    return ids


def _pocket(weights: str) -> tuple[Any, Any, Any, PocketConfig]:
    if weights == RANDOM:
        return _random(PocketConfig())
    pocket = load_pocket(BUNDLED_POCKET if weights == BUNDLED else weights)
    return pocket.unet, pocket.vae, pocket.text, pocket.config


def _sd15(weights: str) -> tuple[Any, Any, Any, PocketConfig]:
    path = Path(weights)
    if weights == RANDOM:
        return _random(SD15)
    if weights and (path / "unet").is_dir():
        unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", local_files_only=True)
        vae = AutoencoderKL.from_pretrained(path, subfolder="vae", local_files_only=True)
        text = CLIPTextModel.from_pretrained(path / "text_encoder", local_files_only=True)
        return unet, vae, text, SD15
    if path.suffix == ".safetensors" and path.is_file():
        return *load_networks(load_file(path), SD15), SD15
    raise ConfigError(
        f"base.weights is {weights!r}; give a Stable Diffusion 1.5 checkpoint (.safetensors), a diffusers folder of "
        'it, or "random" to try the shape'
    )


def _random(config: PocketConfig) -> tuple[Any, Any, Any, PocketConfig]:
    """Untrained networks, the same in every run and process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return new_unet(config), new_vae(config), new_text_encoder(config), config
