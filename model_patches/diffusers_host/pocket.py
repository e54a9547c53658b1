"""The pocket Stable Diffusion as models of diffusers and transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from .. import checkpoint
from ..ldm_names import control_prefixes, rename, unet_prefixes, vae_to_diffusers
from ..pocket import (
    CLIP_VOCABULARY,
    CONTROL,
    CONTROL_SYSTEM,
    SCALE,
    SYSTEM,
    TEXT,
    UNET,
    VAE,
    PocketConfig,
    part,
    stock_weights,
)


@dataclass(frozen=True)
class Pocket:
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel
    config: PocketConfig


def new_unet(config: PocketConfig) -> UNet2DConditionModel:
    attention = config.unet_attention
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=config.unet_channels,
        layers_per_block=config.unet_layers,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        cross_attention_dim=config.context,
        attention_head_dim=config.heads,  # despite its name, diffusers takes the number of heads here
        norm_num_groups=32,
    )


def new_vae(config: PocketConfig) -> AutoencoderKL:
    sizes: dict[str, Any] = {  # diffusers annotates these as tuples of length one
        "down_block_types": ("DownEncoderBlock2D",) * len(config.vae_channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(config.vae_channels),
        "block_out_channels": config.vae_channels,
    }
    return AutoencoderKL(
        **sizes, layers_per_block=config.vae_layers, norm_num_groups=32, sample_size=64, scaling_factor=SCALE
    )


def new_text_encoder(config: PocketConfig, rows: int = CLIP_VOCABULARY) -> CLIPTextModel:
    """rows: entries of the token table: the compact table in training, otherwise CLIP's whole vocabulary."""
    full_vocabulary = rows == CLIP_VOCABULARY
    sizes = CLIPTextConfig(
        vocab_size=rows,
        hidden_size=config.context,
        intermediate_size=4 * config.context,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=config.context,
        # 2 makes transformers pool the output as for the first CLIP files; that output is not used here
        bos_token_id=49406 if full_vocabulary else 0,
        eos_token_id=49407 if full_vocabulary else 2,
        pad_token_id=1,
    )
    return CLIPTextModel(sizes)


def load_pocket(path: Path | str) -> Pocket:
    """The three networks in fp32, frozen and in evaluation mode."""
    file = checkpoint.load_sized(path, SYSTEM, (UNET, TEXT, VAE))
    config = PocketConfig.from_dict(file.config)
    unet, vae, text = load_networks(stock_weights(file.weights), config)
    for module in (unet, vae, text):
        module.eval().requires_grad_(False)
    return Pocket(unet, vae, text, config)


def load_control(path: Path | str) -> ControlNetModel:
    """The ControlNet of a file in fp32, frozen and in evaluation mode. A hint has 8 times the size of the latents."""
    file = checkpoint.load_sized(path, CONTROL_SYSTEM, (CONTROL,))
    config = PocketConfig.from_dict(file.config)
    control = ControlNetModel.from_unet(new_unet(config), load_weights_from_unet=False)
    names = control_prefixes(len(config.unet_channels), config.unet_layers, config.unet_attention)
    control.load_state_dict(rename({k: v.float() for k, v in part(file.weights, CONTROL).items()}, names))
    return control.eval().requires_grad_(False)


def load_networks(
    weights: dict[str, Tensor], config: PocketConfig
) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """U-Net, autoencoder and text encoder in fp32 from the weights of a Stable Diffusion checkpoint of these sizes."""
    weights = {k: v.float() for k, v in weights.items() if not k.endswith("position_ids")}
    unet, vae, text = new_unet(config), new_vae(config), new_text_encoder(config)
    prefixes = unet_prefixes(len(config.unet_channels), config.unet_layers, config.unet_attention)
    unet.load_state_dict(rename(part(weights, UNET), prefixes))
    vae.load_state_dict(vae_to_diffusers(part(weights, VAE), len(config.vae_channels), config.vae_layers))
    text.load_state_dict(_text_names(text, part(weights, TEXT)))
    return unet, vae, text


def _text_names(text: CLIPTextModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of `text`: transformers 5 has no level `text_model.`, unlike files and version 4."""
    nested = any(k.startswith("text_model.") for k in text.state_dict())
    return weights if nested else {k.removeprefix("text_model."): v for k, v in weights.items()}
