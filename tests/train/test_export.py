"""Temporal layers in other layouts: bit-identical weights, and the same output of diffusers' own video U-Net."""

import logging
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_motion_model import MotionAdapter, UNetMotionModel
from safetensors.torch import load_file

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel
from stillmotion.model_patches.diffusers_host.motion import attach
from stillmotion.model_patches.diffusers_host.pocket import new_unet
from stillmotion.model_patches.harivo.config import HarivoConfig, MappingConfig
from stillmotion.model_patches.harivo.model import HarivoModel
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.training.plans.errors import ConfigError
from stillmotion.training.tools.export import export

BETAS = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}


def motion(**changes):
    torch.manual_seed(0)
    config = MotionConfig(**({"block_channels": (32, 64), "layers_per_block": 1, "mid_block": True} | BETAS | changes))
    model = MotionModel(config)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "proj_out" in name:
                param.normal_(std=0.1)
    return config, model


@pytest.fixture
def file(tmp_path):
    config, model = motion(group_norm="per_clip")
    path = tmp_path / "motion.safetensors"
    weights = {k: v.half() for k, v in model.state_dict().items()}
    checkpoint.save(path, system="motion", config=config.to_dict(), weights=weights, header={"base": "abc"})
    return path


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_an_animatediff_file_comes_back_bit_for_bit(file, tmp_path):
    out = export(file, "animatediff", tmp_path / "mm.safetensors")
    again = checkpoint.load(out)
    assert again.layout.startswith("AnimateDiff")
    assert same(again.weights, checkpoint.load(file).weights)


def test_a_diffusers_folder_comes_back_bit_for_bit(file, tmp_path):
    out = export(file, "diffusers", tmp_path / "adapter")
    again = checkpoint.load(out / "diffusion_pytorch_model.safetensors")
    assert same(again.weights, checkpoint.load(file).weights)


def test_diffusers_reads_both(file, tmp_path):
    """diffusers' own loaders are the reference; from_single_file requires AnimateDiff's v2 architecture."""
    folder = export(file, "diffusers", tmp_path / "adapter")
    loaded = MotionAdapter.from_pretrained(folder)
    assert same(dict(loaded.half().state_dict()), load_file(folder / "diffusion_pytorch_model.safetensors"))


def test_diffusers_video_unet_gives_the_numbers_of_ours(file, tmp_path):
    base = PocketConfig(unet_channels=(32, 64), unet_attention=(False, True), context=32, heads=8)
    torch.manual_seed(1)
    unet = new_unet(base).eval()
    adapter = MotionAdapter.from_pretrained(export(file, "diffusers", tmp_path / "adapter")).float()
    video_unet: Any = UNetMotionModel.from_unet2d(unet, adapter)
    video_unet.eval()
    stored = checkpoint.load(file)
    model = MotionModel(MotionConfig.from_dict(stored.config))
    model.load_state_dict({k: v.float() for k, v in stored.weights.items()})
    x, context = torch.randn(1, 4, 5, 8, 8), torch.randn(1, 7, 32)
    handle = attach(unet, model)
    handle.frames = 5
    with torch.no_grad():
        output = unet(x[0].transpose(0, 1), torch.tensor(500), context.repeat(5, 1, 1)).sample
        reference = video_unet(x, torch.tensor(500), context.repeat(5, 1, 1)).sample[0].transpose(0, 1)
    torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-5)


def test_the_temporal_layers_of_a_harivo_file_are_a_motion_file(tmp_path, caplog):
    config, model = motion()
    whole = HarivoModel(HarivoConfig(motion=config, mapping=MappingConfig(width=32)))
    whole.temporal.load_state_dict(model.state_dict())
    path = tmp_path / "harivo.safetensors"
    checkpoint.save(
        path, system="harivo", config=whole.config.to_dict(), weights=whole.state_dict(), header={"base": "b"}
    )
    with caplog.at_level(logging.INFO):
        out = checkpoint.load(export(path, "stillmotion", tmp_path / "motion.safetensors"))
    assert "not exported: mapping" in caplog.text
    assert same(out.weights, dict(model.state_dict()))
    assert out.header["base"] == "b"
    assert MotionConfig.from_dict(out.config) == config


def test_layers_that_diffusers_would_compute_differently_are_refused(tmp_path, caplog):
    config, model = motion(group_norm="per_frame")
    path = tmp_path / "motion.safetensors"
    checkpoint.save(path, system="motion", config=config.to_dict(), weights=model.state_dict())
    export(path, "diffusers", tmp_path / "adapter")
    assert "GroupNorm over single frames" in caplog.text


@pytest.mark.parametrize(("layout", "name"), [("animatediff", "folder"), ("diffusers", "a.safetensors"), ("x", "y")])
def test_a_name_that_does_not_fit_the_layout_is_refused(file, tmp_path, layout, name):
    with pytest.raises(ConfigError):
        export(file, layout, tmp_path / name)
    assert not (tmp_path / name).exists()
