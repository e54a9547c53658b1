"""VidRD's temporal-aware decoder for any VAE like Stable Diffusion's, as a ComfyUI VAE.

`TemporalVAE` shares weights and memory with the original VAE, but has another `decode`: frames pass through the stages
of the VAE's decoder and through Temp-Convs, which have their own ModelPatcher. The original VAE is not changed.

Shapes: latents (f, 4, h, w), images (f, H, W, 3), frame after frame.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.ldm.models.autoencoder import AutoencodingEngine
from comfy.ldm.modules.diffusionmodules.model import Decoder
from comfy.model_management import throw_exception_if_processing_interrupted as interrupted
from torch import Tensor

from ... import checkpoint
from ...systems import VIDRD_DECODER
from ...vidrd.config import DecoderConfig
from ...vidrd.decoder import Stage, TemporalDecoder, cut, decode, stream
from ..motion.files import Typed, patcher_of

log = logging.getLogger(__name__)
PART = 4  # frames that are decoded at once if memory allows


class HostedDecoder(Typed, TemporalDecoder):
    pass


@dataclass(frozen=True)
class LoadedDecoder:
    """A loaded file of Temp-Convs."""

    patcher: comfy.model_patcher.ModelPatcher
    config: DecoderConfig
    info: str


def load_decoder(path: Path | str) -> LoadedDecoder:
    """Load a file of Temp-Convs for a decoder. CheckpointError says what is wrong with any other file."""
    file = checkpoint.load(path, expect=VIDRD_DECODER, look=interrupted)
    loaded = LoadedDecoder(_patcher(file), DecoderConfig.from_dict(file.config), checkpoint.describe(file))
    loaded.patcher.cached_patcher_init = (_reload, (str(path),))
    log.info("%s is %s", Path(path).name, loaded.info)
    return loaded


def _reload(path: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return _patcher(checkpoint.load(path, expect=VIDRD_DECODER, look=interrupted), disable_dynamic=disable_dynamic)


def _patcher(file: checkpoint.Checkpoint, *, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    with torch.device("meta"):
        module = HostedDecoder(DecoderConfig.from_dict(file.config), ops=comfy.ops.manual_cast)
    return patcher_of(module, file.weights, disable_dynamic=disable_dynamic)


class TemporalVAE(comfy.sd.VAE):
    """A VAE whose decoder uses the neighbours of a frame. Encoding is that of the original VAE.

    frames: of one clip; 0: all latents of a call are one clip. For a decoder with statistics over the clip, 0 means the
    clip length of its training. Whole clips are decoded as a stream if the result is the same.
    """

    def __init__(self, vae: comfy.sd.VAE, decoder: LoadedDecoder, frames: int = 0) -> None:
        check_base(vae, decoder.config)
        vars(self).update(vars(vae))
        self.temporal = decoder
        self.clip = frames or (decoder.config.frames if decoder.config.group_norm == "per_clip" else 0)

    def decode(self, samples_in: Tensor, vae_options: Any = None) -> Tensor:
        """Latents of whole clips (f, 4, h, w) -> images (f, H, W, 3) in 0..1. The last clip may be shorter."""
        del vae_options  # options of other kinds of autoencoders
        clips = samples_in.split(self.clip or len(samples_in))
        return torch.cat([part for clip in clips for part in self.decode_stream([clip])])

    def decode_stream(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode one clip, passed in parts (f, 4, h, w), to images in parts (f, H, W, 3) of other sizes.

        Memory does not grow with the length. With statistics over the clip, each part is decoded as one clip.
        """
        for images in self._run(latents):
            yield self.process_output(images.to(self.output_device, self.vae_output_dtype(), copy=True)).movedim(1, -1)

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: Any = None,
        overlap_t: Any = None,
    ) -> Tensor:
        """As `decode`, but one image tile after another: less memory, faint seams. Sizes are in latents."""
        del tile_t, overlap_t  # a clip is never cut in time
        tile = (self.clip or len(samples), tile_y or 64, tile_x or 64)
        images = [self._tiled(clip, tile, 16 if overlap is None else overlap) for clip in samples.split(tile[0])]
        return self.process_output(torch.cat(images)).movedim(1, -1)

    def _tiled(self, clip: Tensor, tile: tuple[int, int, int], overlap: int) -> Tensor:
        scale = self.spacial_compression_decode()

        def run(latents: Tensor) -> Tensor:  # (1, c, f, h, w)
            return torch.cat(list(self._run([latents[0].transpose(0, 1)]))).transpose(0, 1)[None]

        tiling: dict[str, Any] = {"tile": tile, "overlap": (0, overlap, overlap), "upscale_amount": (1, scale, scale)}
        tiling["output_device"] = self.output_device
        return comfy.utils.tiled_scale_multidim(clip.transpose(0, 1)[None], run, **tiling)[0].transpose(0, 1)

    def _run(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        """The network's images of one clip, on its device."""
        decoder: Any = self.temporal.patcher.model
        layers, steps = decoder.layers(), stages(self.first_stage_model)
        per_clip = self.temporal.config.group_norm == "per_clip"

        def parts() -> Iterator[Tensor]:
            size = 0
            for latent in latents:
                size = size or self._make_room(latent, per_clip)
                for part in latent.split(len(latent) if per_clip else size):
                    yield part.to(self.device, self.vae_dtype)

        if not per_clip:
            return stream(steps, layers, parts())
        return (decode(steps, layers, part, len(part)) for part in parts())

    def _make_room(self, latent: Tensor, per_clip: bool) -> int:
        """Load the weights, and return how many frames fit into memory at once."""
        self.throw_exception_if_invalid()
        one = self.memory_used_decode(latent[:1].shape, self.vae_dtype)
        halo = 0 if per_clip else self._halo_bytes(latent)
        required = int(one * (len(latent) if per_clip else PART) + halo)
        patchers = [self.patcher, self.temporal.patcher]
        comfy.model_management.load_models_gpu(patchers, memory_required=required)
        free = self.patcher.get_free_memory(self.device) - halo
        return int(max(1, min(PART, free // max(1, one))))

    def _halo_bytes(self, latent: Tensor) -> int:
        """Bytes that the Temp-Convs of a stream store: each stores twice its radius in frames."""
        config = self.temporal.config
        pixels = latent.shape[2] * latent.shape[3]
        each = [c * pixels * 4**i for i, c in enumerate(reversed(config.block_channels))]
        numbers = 2 * config.conv_layers * (config.layers_per_block + 1) * sum(each)
        return numbers * comfy.model_management.dtype_size(self.vae_dtype)


def check_base(vae: comfy.sd.VAE, config: DecoderConfig) -> None:
    """ValueError, naming the sizes or the kind of VAE, unless the Temp-Convs were built for this decoder."""
    model: Any = vae.first_stage_model
    decoder: Any = getattr(model, "decoder", None)
    levels: list[Any] = list(getattr(decoder, "up", ()))
    plain = isinstance(model, AutoencodingEngine) and type(decoder) is Decoder and getattr(model, "bn", None) is None
    if not plain or decoder.carried or any(len(level.attn) for level in levels) or vae.latent_dim != 2:
        raise ValueError(
            f"temporal decoder: this VAE is a {type(model).__name__}, or already has temporal layers; the decoder "
            "needs an AutoencoderKL for single images, such as Stable Diffusion's; load such a VAE"
        )
    actual = [level.block[0].out_channels for level in levels], decoder.num_res_blocks
    if actual != (list(config.block_channels), config.layers_per_block):
        raise ValueError(
            f"temporal decoder: it was built for an autoencoder with block channels {config.block_channels} and "
            f"{config.layers_per_block} layers per block, but this VAE has {tuple(actual[0])} and {actual[1]}; load "
            "the VAE that it was trained on"
        )


def stages(model: Any) -> list[Stage]:
    """The layers that the decoder runs on each frame alone, cut after each ResNet of its up blocks."""
    decoder = model.decoder

    def begin(latents: Tensor) -> Tensor:
        middle = decoder.mid
        x = decoder.conv_in(model.post_quant_conv(latents) if hasattr(model, "post_quant_conv") else latents)
        return middle.block_2(middle.attn_1(middle.block_1(x)))

    def end(x: Tensor) -> Tensor:
        images = decoder.conv_out(F.silu(decoder.norm_out(x)))
        return images.tanh() if decoder.tanh_out else images

    levels = reversed(list(enumerate(decoder.up)))
    return cut(begin, [(level.block, [level.upsample] if i else []) for i, level in levels], end)
