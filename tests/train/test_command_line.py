"""`python -m stillmotion.training`, called like on a command line."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from stillmotion.model_patches import checkpoint
from stillmotion.training.__main__ import main
from stillmotion.training.plans.config import CONFIGS


def typed(*arguments):
    """Run the command in this process."""
    return main(list(map(str, arguments)))


@pytest.mark.slow
def test_latents_doctor_train_resume_and_export(tmp_path, comfyui_dir, caplog):
    """All commands with the bundled pocket model, in the smallest sizes."""
    caplog.set_level("INFO")
    small = ["--set", "data.frames=2", "--set", "train.batch=1", "--set", "samples.steps=1", "--set", "samples.every=1"]
    small += ["--latents", tmp_path / "latents"]
    assert (
        typed("latents", "harivo_pocket", "--clips", 2, "--size", 64, "--frames", 4, "--out", tmp_path / "latents") == 0
    )
    assert typed("doctor", "harivo_pocket", *small) == 0
    assert "parameters_mapping_m" in caplog.text
    assert "weighted gradient on temporal" in caplog.text
    out = tmp_path / "run"
    steps = ["--set", "train.steps=2", "--set", "train.log_every=1", "--out", out]
    for _ in range(2):  # the second time nothing remains to be done
        assert typed("train", "harivo_pocket", *small, *steps) == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"loss", "dsm", "reg", "trs", "dc", "lr", "seconds_per_step"} <= set(lines[0])
    with Image.open(out / "samples" / "step-00000002.png") as picture:
        assert picture.size == (2 * 64, 3 * 64)
    with pytest.raises(SystemExit, match=r"loss\.trs was 0\.5, is now 0\.2"):
        typed("train", "harivo_pocket", *small, *steps, "--set", "loss.trs=0.2")
    assert typed("train", "harivo_pocket", *small, *steps, "--set", "loss.trs=0.2", "--allow", "loss.trs") == 0
    assert typed("export", out / "harivo.safetensors", "--layout", "animatediff", "--out", out / "mm.safetensors") == 0
    temporal = checkpoint.load(out / "harivo.safetensors", expect="harivo").weights
    exported = checkpoint.load(out / "mm.safetensors").weights
    assert all((temporal[f"temporal.{k}"] == v).all() for k, v in exported.items())


def test_an_unknown_key_is_named_before_anything_is_loaded(tmp_path, comfyui_dir):
    with pytest.raises(SystemExit, match=r"train\.stepz is unknown; did you mean steps\?"):
        typed("train", CONFIGS / "harivo_pocket.toml", "--set", "train.stepz=1")
    with pytest.raises(SystemExit, match="give the folder of latents"):
        typed("train", "harivo_pocket", "--out", tmp_path)
    with pytest.raises(SystemExit, match=r"give a Stable Diffusion 1[.]5 checkpoint"):
        typed("doctor", "harivo_sd15", "--latents", tmp_path)


@pytest.mark.slow
def test_several_processes_get_the_options_of_the_command(tmp_path):
    """torch.distributed.run must not parse our options, because it has its own option --start-method."""
    command = [sys.executable, "-m", "stillmotion.training", "motion", "--pocket", tmp_path / "no.safetensors"]
    command += ["--start", tmp_path / "no.safetensors", "--latents", tmp_path, "--out", tmp_path, "--processes", "2"]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert ended.returncode
    assert "ambiguous option" not in ended.stderr
    assert "no.safetensors" in ended.stderr
