"""The ablation of pseudo-videos: rows that differ only in their images, and a complete small run."""

import json
import os
from dataclasses import replace
from functools import partial

import pytest
import torch

from stillmotion.evaluation.scores.score import compare, score
from stillmotion.training.__main__ import main
from stillmotion.training.ablations import pseudo as ablate_data
from stillmotion.training.ablations.pseudo import ROWS, Budget, clips, pseudo_videos
from stillmotion.training.data.sprites import MOTIONS

SMALL = Budget(clips=2, images=3)
SHOWS = [row.show for row in ROWS if row.show]


def test_rows_have_the_same_clips_and_captions_and_differ_in_the_camera():
    rest, smooth, whole = (list(pseudo_videos(SMALL, show)) for show in SHOWS)
    assert [caption for _, caption in rest] == [caption for _, caption in smooth] == [caption for _, caption in whole]
    for (still, _), (moving, _), (shaken, _) in zip(rest, smooth, whole, strict=True):
        assert torch.equal(still, still[:1].expand_as(still))
        assert (still[0] - moving[0]).abs().mean() < 0.01  # each downscales the image for its own narrowest view
        assert moving.diff(dim=0).abs().mean() > 1e-3
        assert 0 < (moving - shaken).abs().mean() < 0.2


def test_captions_of_images_tell_no_motion():
    captions = [caption for _, caption in pseudo_videos(replace(SMALL, images=40), SHOWS[0])]
    phrases = [phrase for wordings in MOTIONS.values() for phrase in wordings]
    assert not [caption for caption in captions if any(phrase in caption for phrase in phrases)]
    assert any(any(phrase in caption for phrase in phrases) for _, caption in clips(replace(SMALL, clips=10)))


def trained_here(config, out, latents, changes, processes):
    arguments = ["train", config, "--latents", latents, "--out", out, "--processes", processes]
    assert main([*map(str, arguments), *(word for change in changes for word in ("--set", change))]) == 0


@pytest.mark.slow
def test_a_whole_ablation_of_pseudo_videos_small(tmp_path, comfyui_dir, monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    for name, function in (("score", score), ("compare", compare)):
        monkeypatch.setattr(ablate_data, name, partial(function, draws=20))  # each draw needs a Frechet distance
    monkeypatch.setattr(ablate_data, "QUICK", replace(ablate_data.QUICK, clips=2))
    # test_ablate runs it as a command of its own, where each training imports everything again
    monkeypatch.setattr(ablate_data, "run_training", trained_here)
    out = tmp_path / "out"
    arguments = ["ablate", "pseudo", "--quick", "--steps", "1", "--images", "2", "--prompts", "3", "--sampling", "1"]
    arguments += ["--out", str(out), "--set", "train.batch=1", "--set", "train.warmup=0"]
    assert main(arguments) == 0
    report = json.loads((out / "ablation.json").read_text())
    assert list(report["rows"]) == [row.name for row in ROWS]
    assert list(report["minus_first"]) == [row.name for row in ROWS[1:]]
    table = (out / "ablation.md").read_text()
    assert "| + pseudo-videos, smooth |" in table
    assert "start nothing" in table or "start vidrd.safetensors" in table


def test_the_trainer_s_errors_come_first(tmp_path, comfyui_dir):
    with pytest.raises(SystemExit, match=r"loss\.trs is unknown"):
        main(["ablate", "pseudo", "--out", str(tmp_path), "--set", "loss.trs=1"])
    with pytest.raises(SystemExit, match="--decoder is not an option of `ablate pseudo`"):
        main(["ablate", "pseudo", "--out", str(tmp_path), "--decoder", "x"])
    assert not list(tmp_path.iterdir())
