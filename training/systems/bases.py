"""The frozen image models on which video models are trained: the pocket model, Stable Diffusion 1.5 and 2.1."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ...model_patches.diffusers_host.pocket import load_networks, load_pocket, new_text_encoder, new_unet, new_vae
from ...model_patches.pocket import PocketConfig
from ..data.latents import weights_hash
from ..plans.common import BUNDLED, POCKET, RANDOM, BaseTable
from ..plans.errors import ConfigError

BUNDLED_POCKET = POCKET / "pocket.safetensors"
TOKENS, END = 77, 49407
SD21_PAD = 0  # Stable Diffusion 2's tokenizer pads with "!"
# The sizes of Stable Diffusion 1.5, as a pocket config.
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
SD21 = replace(SD15, context=1024, text_layers=23, text_heads=16)  # its attention has 64 channels a head
SD21_HEADS = (5, 10, 20, 20)


@dataclass(frozen=True)
class Base:
    """A frozen image model: its networks, its sizes, and its tokenizer, captions -> ids (n, 77)."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel
    config: PocketConfig
    ids: Callable[[Sequence[str]], Tensor]
    hash: str  # of the U-Net, before its weights are converted to bfloat16


def load(table: BaseTable, tokenizer: Path) -> Base:
    """Load the base of a config, frozen, on the CPU. Raises ConfigError when its weights do not exist."""
    unet, vae, text, config = {"pocket": _pocket, "sd15": _sd15, "sd21": _sd21}[table.kind](table.weights)
    for module in (unet, vae, text):
        module.eval().requires_grad_(False)
    digest = weights_hash(unet)
    if table.half:  # not the autoencoder, because its hash is compared with that of the cached latents
        unet.to(torch.bfloat16)
        text.to(torch.bfloat16)
    if table.checkpointing:
        unet.enable_gradient_checkpointing()
    pad = SD21_PAD if table.kind == "sd21" else END
    return Base(unet, vae, text, config, clip_ids(tokenizer, pad), digest)


def clip_ids(tokenizer: Path, pad: int = END) -> Callable[[Sequence[str]], Tensor]:
    """A function captions -> CLIP's ids (n, 77), by default padded with the end token like Stable Diffusion 1's."""
    clip = CLIPTokenizer.from_pretrained(str(tokenizer))

    def ids(captions: Sequence[str]) -> Tensor:
        rows = [clip(text, truncation=True, max_length=TOKENS)["input_ids"] for text in captions]
        return torch.tensor([row + [pad] * (TOKENS - len(row)) for row in rows])

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
        return *_from_folder(path), SD15
    if path.suffix == ".safetensors" and path.is_file():
        return *_single_file(path), SD15
    raise ConfigError(
        f"base.weights is {weights!r}; give a Stable Diffusion 1.5 checkpoint (.safetensors), a diffusers folder of "
        'it, or "random" to try a configuration'
    )


def _single_file(path: Path) -> tuple[Any, Any, Any]:
    try:
        return load_networks(load_file(path), SD15)
    except (SafetensorError, RuntimeError, KeyError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(
            f"base.weights: {path} is no Stable Diffusion 1.5 checkpoint, or is damaged ({reason}); get the file again"
        ) from error


def _sd21(weights: str) -> tuple[Any, Any, Any, PocketConfig]:
    if weights == RANDOM:
        return *_fixed(_new_sd21), SD21
    if weights and (Path(weights) / "unet").is_dir():
        return *_from_folder(Path(weights)), SD21
    raise ConfigError(
        f"base.weights is {weights!r}; give a diffusers folder of Stable Diffusion 2.1, the base version that predicts "
        'eps, or "random" to try a configuration'
    )


def _from_folder(path: Path) -> tuple[Any, Any, Any]:
    unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", local_files_only=True)
    vae = AutoencoderKL.from_pretrained(path, subfolder="vae", local_files_only=True)
    return unet, vae, CLIPTextModel.from_pretrained(path / "text_encoder", local_files_only=True)


def _new_sd21() -> tuple[Any, Any, Any]:
    sizes: dict[str, Any] = {
        "block_out_channels": SD21.unet_channels,
        "attention_head_dim": SD21_HEADS,  # in spite of diffusers' name: the number of heads
        "cross_attention_dim": SD21.context,
        "use_linear_projection": True,
        "sample_size": 64,
    }
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=SD21.context,
        intermediate_size=4 * SD21.context,
        num_hidden_layers=SD21.text_layers,
        num_attention_heads=SD21.text_heads,
        hidden_act="gelu",
        projection_dim=512,
    )
    return UNet2DConditionModel(**sizes), new_vae(SD21), CLIPTextModel(text)


def _random(config: PocketConfig) -> tuple[Any, Any, Any, PocketConfig]:
    return *_fixed(lambda: (new_unet(config), new_vae(config), new_text_encoder(config))), config


def _fixed(build: Callable[[], tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
    """Untrained networks, which are equal in every run and process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()
