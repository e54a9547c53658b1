"""VidRD files: our format, and the layout of the authors' checkpoints."""

import pytest
import torch
from safetensors.torch import save_file

from stillmotion.model_patches import checkpoint, layouts
from stillmotion.model_patches.layouts import CheckpointError
from stillmotion.model_patches.systems import HARIVO, MOTION, VIDRD, VIDRD_DECODER
from stillmotion.model_patches.vidrd.config import DecoderConfig, VidrdConfig
from stillmotion.model_patches.vidrd.decoder import TemporalDecoder
from stillmotion.model_patches.vidrd.model import VidrdModel

SMALL = {"block_channels": (32, 64), "attention": (False, True), "heads": (8, 8), "layers_per_block": 1}
SMALL |= {"context_dim": 16}
DECODER = {"block_channels": (32, 64), "layers_per_block": 1}
EITHER = (MOTION, HARIVO, VIDRD)


def model_of(**changes):
    torch.manual_seed(0)
    return VidrdModel(VidrdConfig(**{**SMALL, **changes}))


def released(model):
    """A training checkpoint as written by the authors' code: the complete U-Net and the text encoder, with prefixes."""
    frozen = ["conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight"]
    frozen += ["down_blocks.1.attentions.0.proj_in.weight", "up_blocks.0.upsamplers.0.conv.weight", "conv_out.bias"]
    whole = {f"unet.{k}": v for k, v in model.state_dict().items()} | {f"unet.{k}": torch.zeros(2) for k in frozen}
    return {"state_dict": whole | {"text_encoder.text_model.final_layer_norm.weight": torch.zeros(2)}, "epoch": 3}


def test_our_file_is_read_back_with_and_without_spatial_weights(tmp_path):
    for spatial in (True, False):
        model = model_of(spatial=spatial, frames=12)
        path = tmp_path / "v.safetensors"
        checkpoint.save(path, system="vidrd", config=model.config.to_dict(), weights=model.state_dict())
        content = checkpoint.load(path, expect=EITHER)
        assert content.system == "vidrd"
        assert VidrdConfig.from_dict(content.config) == model.config
        assert all(torch.equal(content.weights[k], v) for k, v in model.state_dict().items())
        line = checkpoint.describe(content)
        assert "VidRD: 8 Temp-Convs and 4 Temp-Attns" in line
        assert ("without fine-tuned" in line) is not spatial


@pytest.mark.parametrize("conv_layers", [3, 4])
def test_the_authors_checkpoint_is_recognised_by_its_keys(tmp_path, conv_layers):
    model = model_of(conv_layers=conv_layers)
    torch.save(released(model), tmp_path / "ModelT2V.pth")
    content = checkpoint.load(tmp_path / "ModelT2V.pth", expect=EITHER)
    assert content.system == "vidrd"
    assert VidrdConfig.from_dict(content.config) == model.config
    assert {k: v.shape for k, v in content.weights.items()} == {k: v.shape for k, v in model.state_dict().items()}
    model.load_state_dict(content.weights, strict=True)
    assert "as published: VidRD" in checkpoint.describe(content)


def test_the_published_sizes_are_read_off_a_checkpoint_of_stable_diffusion_2():
    expected = VidrdConfig(
        block_channels=(320, 640, 1280, 1280), attention=(True, True, True, False), heads=(5, 10, 20, 20)
    )
    with torch.device("meta"):
        weights = layouts.unwrap(released(VidrdModel(expected)))
    assert layouts.identify(weights, "ModelT2V.pth") == layouts.VIDRD
    config = layouts.vidrd_config(layouts.from_vidrd(weights), "ModelT2V.pth")
    assert VidrdConfig.from_dict(config) == expected


def test_the_authors_autoencoder_gives_its_temporal_layers(tmp_path):
    decoder = TemporalDecoder(DecoderConfig(**DECODER, group_norm="per_clip"))
    whole = {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
    whole |= {k: torch.zeros(2) for k in ("encoder.conv_in.weight", "decoder.conv_out.bias", "quant_conv.weight")}
    torch.save({"state_dict": whole}, tmp_path / "vae.pth")
    content = checkpoint.load(tmp_path / "vae.pth", expect=VIDRD_DECODER)
    assert DecoderConfig.from_dict(content.config) == decoder.config
    decoder.load_state_dict(content.weights, strict=True)
    assert "VidRD decoder: 4 Temp-Convs" in checkpoint.describe(content)
    assert "clip by clip" in checkpoint.describe(content)


def test_our_decoder_file_is_read_back(tmp_path):
    decoder = TemporalDecoder(DecoderConfig(**DECODER))
    path = tmp_path / "d.safetensors"
    checkpoint.save(path, system="vidrd_decoder", config=decoder.config.to_dict(), weights=decoder.state_dict())
    content = checkpoint.load(path, expect=VIDRD_DECODER)
    assert DecoderConfig.from_dict(content.config) == decoder.config
    assert "as a stream" in checkpoint.describe(content)
    with pytest.raises(CheckpointError, match="is a StillMotion 'vidrd_decoder' file: a 'motion'"):
        checkpoint.load(path, expect=EITHER)


def test_the_wrong_kind_is_named(tmp_path):
    torch.save(released(model_of()), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"is a VidRD \(Reuse and Diffuse\) model, for Load Motion Model: a"):
        checkpoint.load(tmp_path / "m.pth", expect=VIDRD_DECODER)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="has no StillMotion header: a StillMotion 'pocket' file"):
        checkpoint.load(tmp_path / "x.safetensors", expect="pocket")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("unet.down_blocks.0.temp_convs.0.convs.0.weight", r"has Temp-Convs only for down_blocks \[1\]"),
        ("unet.mid_block.temp_convs.1.convs.3.bias", r"misses mid_block\.temp_convs\.1\.convs\.3\.bias"),
        ("unet.up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight", r"misses up_blocks\.0\.attentions"),
    ],
)
def test_a_damaged_checkpoint_names_what_is_missing(tmp_path, key, message):
    content = released(model_of())
    del content["state_dict"][key]
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / "m.pth", expect=EITHER)
