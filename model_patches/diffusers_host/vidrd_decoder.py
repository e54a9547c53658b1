"""diffusers' AutoencoderKL as the stages of VidRD's temporal-aware decoder; the autoencoder is not changed."""

from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from ..vidrd.config import DecoderConfig
from ..vidrd.decoder import Stage, cut


def stages(vae: AutoencoderKL, config: DecoderConfig) -> list[Stage]:
    """The layers that the decoder runs on each frame alone, cut after each ResNet of its up blocks.

    The first stage takes unscaled latents of the autoencoder, the last returns images in -1..1. ValueError when the
    Temp-Convs were built for another autoencoder.
    """
    check_base(vae, config)
    decoder: Any = vae.decoder

    def begin(latents: Tensor) -> Tensor:
        z = latents if vae.post_quant_conv is None else vae.post_quant_conv(latents)
        return decoder.mid_block(decoder.conv_in(z))

    def end(x: Tensor) -> Tensor:
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))

    def without_time(resnet: Any) -> Stage:
        return lambda x: resnet(x, temb=None)

    blocks = [([without_time(resnet) for resnet in b.resnets], list(b.upsamplers or [])) for b in decoder.up_blocks]
    return cut(begin, blocks, end)


def check_base(vae: AutoencoderKL, config: DecoderConfig) -> None:
    """ValueError unless the Temp-Convs were built for a decoder of these sizes."""
    sizes: Any = vae.config
    actual = tuple(sizes.block_out_channels), sizes.layers_per_block
    if actual != (config.block_channels, config.layers_per_block):
        raise ValueError(
            f"temporal decoder: it was built for an autoencoder with block channels {config.block_channels} and "
            f"{config.layers_per_block} layers per block, but this one has {actual[0]} and {actual[1]}; load the "
            "autoencoder that it was trained on"
        )
