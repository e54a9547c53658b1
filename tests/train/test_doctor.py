"""The doctor for every system, on tiny random bases: it reports the trained parts and its figures."""

from dataclasses import replace

import pytest
import torch

from stillmotion.model_patches.diffusers_host.pocket import new_text_encoder, new_unet, new_vae
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.training import registry
from stillmotion.training.data import latents
from stillmotion.training.data.latents import Latents, weights_hash
from stillmotion.training.systems import bases
from stillmotion.training.systems.bases import Base, clip_ids
from stillmotion.training.tools import doctor

SMALL = PocketConfig(unet_channels=(32, 64), unet_attention=(False, True), vae_channels=(32, 32, 32), context=32)
SETS = {
    "vidrd_pocket": ["train.batch=2", "data.frames=3", "model.conv_layers=1", "model.spatial=true"],
    "vidrd_decoder_pocket": [
        *("train.batch=1", "data.frames=2", "data.size=32", "loss.disc_width=8"),
        "loss.disc=0.5",
        "loss.disc_layers=1",
    ],
    "artv_pocket": ["train.batch=2", "data.frames=3", "model.mask_channels=[32, 32]", "model.mask_heads=[2, 2]"],
}
PARTS = {
    "vidrd_pocket": {"temporal", "unet"},
    "vidrd_decoder_pocket": {"temporal", "judge"},
    "artv_pocket": {"reference", "anchors", "mask"},
}


@pytest.fixture
def tiny(monkeypatch, comfyui_dir):
    """The pocket configs with a tiny base and six clips of noise."""
    values = torch.randn(6, 3, 4, 8, 8, generator=torch.Generator().manual_seed(3)).half()
    cache = Latents(values, [0.0, 0.5, 1.0], 0, [f"clip {i}" for i in range(6)])

    def load(*_):
        torch.manual_seed(0)
        unet, vae, text = new_unet(SMALL), new_vae(SMALL), new_text_encoder(SMALL)
        for module in (unet, vae, text):
            module.eval().requires_grad_(False)
        ids = clip_ids(comfyui_dir / "comfy" / "sd1_tokenizer")
        return Base(unet, vae, text, SMALL, ids, weights_hash(unet))

    monkeypatch.setattr(bases, "load", load)
    monkeypatch.setattr(latents, "for_training", lambda *_: cache)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SETS))
def test_every_system_is_examined(tiny, name, tmp_path, comfyui_dir, caplog, monkeypatch):
    monkeypatch.setattr(doctor, "STEPS", 1)
    caplog.set_level("INFO")
    plan = registry.read(registry.find(name), SETS[name], out=tmp_path / "run")
    figures = doctor.examine(plan, registry.prepare(plan, comfyui_dir)[0])
    parts = PARTS[name]
    assert {k.removeprefix("parameters_").removesuffix("_m") for k in figures if k.startswith("parameters_")} == {
        *parts,
        *("base_frozen", "trained"),
    }
    assert figures["parameters_trained_m"] == pytest.approx(sum(figures[f"parameters_{part}_m"] for part in parts))
    assert {k.removeprefix("gradient_") for k in figures if k.startswith("gradient_")} == parts
    for entry in ("loader_clips_per_second", "seconds_loss", "seconds_per_step", "memory_gb"):
        assert figures[entry] > 0
    assert "a complete step of" in caplog.text
    assert not (tmp_path / "run").exists()


def test_the_frozen_share_counts_untrained_parameters(tiny, tmp_path, comfyui_dir):
    plan = registry.read(registry.find("vidrd_pocket"), SETS["vidrd_pocket"], out=tmp_path)
    for spatial in (True, False):
        task, _ = registry.prepare(replace(plan, model=replace(plan.model, spatial=spatial)), comfyui_dir)
        unet = sum(p.numel() for p in new_unet(SMALL).parameters()) / 1e6
        figures = doctor.sizes(task, average=True)
        assert figures["parameters_base_frozen_m"] + figures.get("parameters_unet_m", 0) == pytest.approx(unet)
        assert ("parameters_unet_m" in figures) == spatial


def test_the_decoder_is_looked_at_with_its_discriminator(tiny, tmp_path, comfyui_dir, monkeypatch):
    """Before disc_start its gradient is zero."""
    monkeypatch.setattr(doctor, "STEPS", 1)
    sets = [*SETS["vidrd_decoder_pocket"], "loss.disc_start=7"]
    plan = registry.read(registry.find("vidrd_decoder_pocket"), sets, out=tmp_path)
    figures = doctor.examine(plan, registry.prepare(plan, comfyui_dir)[0])
    assert figures["gradient_judge"] > 0
