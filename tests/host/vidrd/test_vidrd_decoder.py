"""The temporal-aware decoder in both hosts: the same images, as a stream or at once; the VAE stays unchanged."""

from pathlib import Path

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.diffusers_host import vidrd_decoder
from stillmotion.model_patches.diffusers_host.pocket import load_pocket, new_vae
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.model_patches.vidrd.config import DecoderConfig
from stillmotion.model_patches.vidrd.decoder import TemporalDecoder, decode, stream

POCKET = Path(__file__).resolve().parents[3] / "pocket" / "pocket.safetensors"
SIZES = {"block_channels": (64, 64, 128), "layers_per_block": 1}  # of the pocket's autoencoder


def layers_of(scale=0.05, **changes):
    torch.manual_seed(0)
    decoder = TemporalDecoder(DecoderConfig(**SIZES, **changes)).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.add_(torch.randn_like(parameter) * scale)
    return decoder


def latents(frames, size=8):
    return torch.randn(frames, 4, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def diffusers_vae():
    return load_pocket(POCKET).vae


@pytest.fixture(scope="module")
def comfy_vae(comfy):
    from stillmotion.model_patches.comfy_host.pocket import load_pocket as load

    return load(POCKET)[2]


@pytest.fixture
def temporal_vae(comfy_vae, tmp_path):
    """temporal_vae(frames=0, scale=0.05, **config) -> the pocket's VAE with random Temp-Convs."""
    from stillmotion.model_patches.comfy_host.vidrd.decoder import TemporalVAE, load_decoder

    def build(frames=0, scale=0.05, **changes):
        decoder = layers_of(scale, **changes)
        path = tmp_path / f"decoder_{len(list(tmp_path.iterdir()))}.safetensors"
        config = decoder.config.to_dict()
        checkpoint.save(path, system="vidrd_decoder", config=config, weights=decoder.state_dict())
        return TemporalVAE(comfy_vae, load_decoder(path), frames)

    return build


@torch.no_grad()
def test_the_stages_of_diffusers_decoder_are_its_own_decode(diffusers_vae):
    steps, z = vidrd_decoder.stages(diffusers_vae, DecoderConfig(**SIZES)), latents(3)
    fresh = TemporalDecoder(DecoderConfig(**SIZES)).eval().layers()
    assert torch.equal(decode(steps, fresh, z, 3), diffusers_vae.decode(z).sample)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4, 7])
def test_a_stream_of_the_pocket_equals_the_clip_at_once(diffusers_vae, size):
    steps, layers, z = vidrd_decoder.stages(diffusers_vae, DecoderConfig(**SIZES)), layers_of().layers(), latents(24)
    whole = decode(steps, layers, z, 24)
    assert (torch.cat(list(stream(steps, layers, z.split(size)))) - whole).abs().max() < 1e-5
    assert (diffusers_vae.decode(z).sample - whole).abs().max() > 0.01


def test_a_fresh_decoder_gives_the_images_of_the_vae(comfy_vae, temporal_vae):
    with torch.inference_mode():
        still = comfy_vae.decode(latents(6))
        fresh = temporal_vae(scale=0.0).decode(latents(6))
    assert fresh.shape == still.shape == (6, 32, 32, 3)
    assert (fresh - still).abs().max() < 1e-5


def test_both_hosts_give_the_same_images(diffusers_vae, temporal_vae):
    steps, layers = vidrd_decoder.stages(diffusers_vae, DecoderConfig(**SIZES)), layers_of().layers()
    with torch.inference_mode():
        expected = decode(steps, layers, latents(9), 9).clamp(-1, 1) / 2 + 0.5
        vae = temporal_vae()
        assert (vae.decode(latents(9)).movedim(-1, 1) - expected).abs().max() < 1e-4
        parts = torch.cat(list(vae.decode_stream(iter(latents(9).split(2)))))
        assert (parts.movedim(-1, 1) - expected).abs().max() < 1e-4


def test_clips_of_a_batch_do_not_see_each_other(temporal_vae):
    with torch.inference_mode():
        vae = temporal_vae(frames=4)
        together = vae.decode(latents(10))
        for clip in torch.arange(10).split(4):
            torch.testing.assert_close(together[clip], vae.decode(latents(10)[clip]), atol=1e-5, rtol=0)
        assert (temporal_vae().decode(latents(10)) - together).abs().max() > 1e-3


def test_statistics_over_the_clip_decode_the_clips_of_the_training(diffusers_vae, temporal_vae):
    steps = vidrd_decoder.stages(diffusers_vae, DecoderConfig(**SIZES))
    layers = layers_of(group_norm="per_clip").layers()
    with torch.inference_mode():
        z = latents(12)
        expected = torch.cat([decode(steps, layers, z[:8], 8), decode(steps, layers, z[8:], 4)]).clamp(-1, 1) / 2 + 0.5
        output = temporal_vae(group_norm="per_clip").decode(z).movedim(-1, 1)
    assert (output - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_tiles_cover_the_picture(temporal_vae):
    with torch.inference_mode():
        vae = temporal_vae()
        whole, tiled = vae.decode(latents(5, 16)), vae.decode_tiled(latents(5, 16), tile_x=12, tile_y=12, overlap=8)
        one = vae.decode_tiled(latents(5, 16), tile_x=16, tile_y=16, overlap=4)
    assert (one - whole).abs().max() < 1e-5
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.1


def test_the_given_vae_is_left_as_it_was(comfy_vae, temporal_vae):
    with torch.inference_mode():
        before, keys = comfy_vae.decode(latents(3)), list(comfy_vae.get_sd())
        attributes = dict(vars(comfy_vae))
        vae = temporal_vae()
        images = vae.decode(latents(3))
        assert torch.equal(comfy_vae.decode(latents(3)), before)
        pictures = torch.rand(2, 32, 32, 3)
        assert torch.equal(vae.encode(pictures), comfy_vae.encode(pictures))
    assert (images - before).abs().max() > 1e-3
    assert list(comfy_vae.get_sd()) == keys
    assert vars(comfy_vae) == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in comfy_vae.first_stage_model.modules())


def test_other_autoencoders_are_refused_by_their_kind(comfy, comfy_vae):
    from comfy.sd import VAE
    from comfy.taesd.taesd import TAESD

    from stillmotion.model_patches.comfy_host.vidrd.decoder import check_base

    with pytest.raises(ValueError, match=r"\(128, 256\) and 2 layers per block, but this VAE has \(64, 64, 128"):
        check_base(comfy_vae, DecoderConfig(block_channels=(128, 256)))
    tiny = VAE.__new__(VAE)
    vars(tiny).update(vars(comfy_vae) | {"first_stage_model": TAESD()})
    with pytest.raises(ValueError, match="this VAE is a TAESD, or already has temporal layers"):
        check_base(tiny, DecoderConfig(**SIZES))
    with pytest.raises(ValueError, match=r"block channels \(64, 64\) and 2 layers"):
        vidrd_decoder.check_base(new_vae(PocketConfig()), DecoderConfig(block_channels=(64, 64)))


def test_long_video_decodes_a_clip_with_it(comfy, comfy_vae, temporal_vae, tiny_sd):
    """Decoding frame by frame, as for other VAEs, would give the layers no neighbours."""
    from stillmotion.model_patches.comfy_host.video.long import LongVideo, make_guider
    from stillmotion.model_patches.vidrd.reuse import Config

    conditioning = [[torch.randn(1, 7, 32), {"pooled_output": None}]]

    def long(vae):
        settings = {"sampler": "euler", "scheduler": "normal", "steps": 2, "seed": 5, "frames": 6, "size": (32, 32)}
        return LongVideo(
            make_guider(tiny_sd, conditioning, conditioning, 1.0), vae, config=Config(overlap=2), **settings
        )

    vae, z = temporal_vae(), latents(6)
    with torch.inference_mode():
        whole, images = vae.decode(z), long(vae).pictures(z)
        written = torch.cat(list(long(vae).decode(z)))
        alone = long(comfy_vae).pictures(z)
    assert (images - whole).abs().max() < 1e-5
    assert torch.equal(written, (images * 255).round().byte())
    assert (images - alone).abs().max() > 0.01
    hashes = [long(v).identity()["models"].get("temporal decoder") for v in (comfy_vae, vae, temporal_vae(scale=0.1))]
    assert hashes[0] is None
    assert hashes[1] != hashes[2]
