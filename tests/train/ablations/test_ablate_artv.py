"""The ablation of ART-V: its rows, the sampling of a row, and a complete small run."""

import json
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from stillmotion.evaluation.scores.score import compare, score
from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.artv.config import POCKET
from stillmotion.model_patches.artv.guidance import Weights
from stillmotion.model_patches.artv.model import ArtvModel
from stillmotion.model_patches.systems import ARTV
from stillmotion.training.__main__ import main
from stillmotion.training.ablations import artv as ablate_artv
from stillmotion.training.ablations.artv import PAPER, PARTS, ROWS, SWEEPS, PocketArtv, RollJob
from stillmotion.training.data import sprites
from stillmotion.training.sampling.autoregressive import Settings, roll


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained ART-V file with the pocket's sizes and without zero weights."""
    torch.manual_seed(0)
    path, fresh = tmp_path_factory.mktemp("model") / "artv.safetensors", ArtvModel(POCKET)
    weights = {k: (v + 0.02 * torch.randn_like(v)).half() for k, v in fresh.state_dict().items()}
    checkpoint.save(path, system=ARTV, config=POCKET.to_dict(), weights=weights)
    return path


def test_every_sweep_goes_through_the_papers_setting_and_changes_one_number():
    assert Settings() == PAPER == next(iter(PARTS.values()))
    assert (PAPER.level, PAPER.weights) == (200, Weights(0.25, 0.25, 6.5))
    for name, sweep in SWEEPS.items():
        assert PAPER in sweep.values(), name
        for value, row in sweep.items():
            if name == "t_test":
                assert row == replace(PAPER, level=value)
            else:
                field = {"w_ref": "reference", "w_anc": "anchor", "w_txt": "text"}[name]
                assert row == replace(PAPER, weights=replace(PAPER.weights, **{field: value}))
    assert list(SWEEPS["t_test"]) == [0, 100, 200, 300, 400]
    assert len(set(ROWS)) == len(ROWS) == 14


def job_of(model, tokenizer, path, **changes):
    settings = {"seed": 0, "steps": 2, "first": 7, "count": 2, "length": 3} | changes
    return RollJob(model=model, file=path, tokenizer=tokenizer, **settings)


@pytest.mark.slow
def test_a_row_is_a_roll_from_the_first_frame_of_the_prompt(model, comfyui_dir, tmp_path, monkeypatch):
    rows = [PAPER, replace(PAPER, mask=False)]
    monkeypatch.setattr(ablate_artv, "ROWS", rows)
    tokenizer = comfyui_dir / "comfy" / "sd1_tokenizer"
    job = job_of(model, tokenizer, tmp_path / "v")
    tensors = job.tensors()
    assert tensors["clips"].shape == (2, 2, 3, 3, 64, 64)
    assert tensors["masks"].shape == (2, 2, 2, 2)
    assert tensors["masks"][0, :, 0].min() > 0
    assert tensors["masks"][1].abs().max() == 0
    pocket, prompts = PocketArtv(model, tokenizer), job.prompts()
    first = pocket.first_frames(prompts)
    pixels = torch.cat([sprites.render(prompt, [0.0]) for prompt in prompts])
    assert (tensors["clips"][0, :, 0] / 255 - pixels).abs().mean() < 0.03  # up to the error of the autoencoder
    second = roll(
        pocket.frame_model,
        pocket.context([sprites.caption(prompts[1])]),
        pocket.context([""]),
        shape=tuple(first[1:].shape),
        frames=3,
        settings=replace(PAPER, steps=2),
        first=first[1:],
        numbers=[8],
    )
    difference = (pocket.pictures(second)[0].int() - tensors["clips"][0, 1].int()).abs()
    assert difference.max() <= 1  # the other prompt of the batch does not matter


def test_the_file_of_a_video_depends_on_all_its_settings(model, tmp_path):
    def name(**changes):
        return job_of(model, tmp_path, tmp_path / "v", **changes).digest()

    assert len({name(), name(length=4), name(seed=1), name(steps=3)}) == 4


@pytest.mark.slow
def test_a_whole_ablation_of_artv_small(model, tmp_path, comfyui_dir, monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    for of in (score, compare):
        monkeypatch.setattr(ablate_artv, of.__name__, partial(of, draws=20))  # each draw needs a Frechet distance
    out = tmp_path / "out"
    arguments = ["ablate", "artv", "--quick", "--prompts", "2", "--sampling", "1", "--length", "17"]
    arguments += ["--model", str(model), "--out", str(out)]
    assert main(arguments) == 0
    report = json.loads((out / "ablation.json").read_text())
    assert list(report["parts"]) == list(PARTS)
    assert list(report["t_test"]) == [f"t_test {level}" for level in (0, 100, 200, 300, 400)]
    paper = report["parts"]["mask, anchor, t_test 200"]
    assert paper == report["t_test"]["t_test 200"] == report["w_ref"]["w_ref 0.25"] == report["w_txt"]["w_txt 6.5"]
    assert {"colour_drift", "class_drift", "late_shape", "pocket_fvd", "direction"} <= set(paper)
    assert len(paper["drifts"]["colour_drift"]) == 17
    assert [len(values) for values in paper["masks"]] == [1, 1]
    changes, without = report["minus_first"], report["parts"]["without mask"]
    assert len(changes) == len(ROWS) - 1
    for name in ("colour_drift", "late_shape", "pocket_fvd"):
        assert changes["without mask"][name][0] == pytest.approx(without[name][0] - paper[name][0], abs=2e-5)
    assert "| without anchor |" in (out / "ablation.md").read_text()
    with Image.open(out / "curves.png") as picture:
        assert picture.height > 1000
    (file,) = out.rglob("videos/*.safetensors")
    write_time = file.stat().st_mtime_ns
    assert main(arguments) == 0
    assert file.stat().st_mtime_ns == write_time


def test_a_missing_model_or_too_short_videos_are_reported_first(model, tmp_path, comfyui_dir):
    with pytest.raises(SystemExit, match=r"there is no model .*nowhere; give an ART-V file"):
        main(["ablate", "artv", "--model", str(tmp_path / "nowhere"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"--length 4: the judges need 16 frames"):
        main(["ablate", "artv", "--model", str(model), "--length", "4", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="--rows is not an option of `ablate artv`"):
        main(["ablate", "artv", "--rows", "x", "--out", str(tmp_path)])
