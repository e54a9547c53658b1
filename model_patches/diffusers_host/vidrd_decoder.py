"""diffusers' AutoencoderKL as the stages of VidRD's temporal-aware decoder; nothing in it is changed."""

from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from ..vidrd.config import DecoderConfig
from ..vidrd.decoder import Stage, cut


def stages(vae: AutoencoderKL, config: DecoderConfig) -> list[Stage]:
    """What the decoder runs on each frame alone, cut behind each ResNet of its up blocks.

    The first takes latents as the autoencoder gives them (unscaled), the last gives images in -1..1. ValueError when
    the Temp-Convs were built for another autoencoder.
    """
    check_base(vae, config)
    decoder: Any = vae.decoder

    def begin(latents: Tensor) -> Tensor:
        z = latents if vae.post_quant_conv is None else vae.post_quant_conv(latents)
        return decoder.mid_block(decoder.conv_in(z))

    def end(x: Tensor) -> Tensor:
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))

    def alone(resnet: Any) -> Stage:
        return lambda x: resnet(x, temb=None)

    blocks = [([alone(resnet) for resnet in b.resnets], list(b.upsamplers or [])) for b in decoder.up_blocks]
    return cut(begin, blocks, end)


def check_base(vae: AutoencoderKL, config: DecoderConfig) -> None:
    """The Temp-Convs were built for a decoder of these sizes."""
    sizes: Any = vae.config
    given = tuple(sizes.block_out_channels), sizes.layers_per_block
    if given != (config.block_channels, config.layers_per_block):
        raise ValueError(
            f"temporal decoder: it was built for an autoencoder with block channels {config.block_channels} and "
            f"{config.layers_per_block} layers per block, this one has {given[0]} and {given[1]}; load the autoencoder "
            "that it was trained on"
        )
