"""The benchmark of the mitigating gradient on models like the pocket's, with random weights."""

import json

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel
from stillmotion.model_patches.pocket import SYSTEM, PocketConfig, compact

SMALL = PocketConfig(
    unet_channels=(32, 32), unet_attention=(False, True), heads=2, context=32, text_layers=1, text_heads=2,
    vae_channels=(32, 32, 32),
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An untrained pocket model, motion model and judge."""
    from stillmotion.evaluation.judges.judge import Judge, save_judge
    from stillmotion.model_patches.diffusers_host import pocket

    folder = tmp_path_factory.mktemp("standins")
    torch.manual_seed(0)
    ids = list(range(300, 360))
    networks = pocket.new_unet(SMALL), pocket.new_vae(SMALL), pocket.new_text_encoder(SMALL, len(ids) + 1)
    unet, vae, text = (network.state_dict() for network in networks)
    weights = compact(SMALL, unet, vae, text, ids)
    checkpoint.save(folder / "pocket.safetensors", system=SYSTEM, config=SMALL.to_dict(), weights=weights)
    config = MotionConfig(block_channels=SMALL.unet_channels, layers_per_block=1, heads=4)
    motion = MotionModel(config).state_dict()
    checkpoint.save(folder / "motion.safetensors", system="motion", config=config.to_dict(), weights=motion)
    save_judge(Judge(), folder / "judge.safetensors")
    return folder


@pytest.mark.slow
def test_the_benchmark_ends_with_its_figures_for_every_alpha(comfy, files, capsys):
    from stillmotion.benchmarks.quality import bench_mg

    options = [f"--{name}={files / name}.safetensors" for name in ("pocket", "motion", "judge")]
    bench_mg.main(["--prompts=2", "--seeds=1", "--repeats=1", "--steps=5", "--alphas", "0", "40", *options])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["bench"] == "mg"
    assert 0 < figures["overhead"] < 1
    for key in ("difference", "travel", "legible", "jump", "eps_ratio"):
        assert set(figures[key]) == set(figures[f"bare_{key}"]) == {"0", "40"}
    assert figures["eps_ratio"]["0"] == 0 < figures["eps_ratio"]["40"]
    assert figures["bare_eps_ratio"]["40"] > figures["eps_ratio"]["40"]
    assert figures["bare_difference"]["0"] == figures["difference"]["0"]
    assert figures["prompts"] == 2
