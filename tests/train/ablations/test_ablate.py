"""The ablation of HARIVO: its rows, clips that are sampled again only after a change, and a complete small run."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

from stillmotion.evaluation.scores.score import compare, score
from stillmotion.model_patches.core.levels import alpha_bars
from stillmotion.model_patches.files import write_tensors
from stillmotion.training import registry
from stillmotion.training.__main__ import main
from stillmotion.training.ablations import harivo as ablate
from stillmotion.training.ablations import jobs as drawing
from stillmotion.training.ablations.common import SPLITS
from stillmotion.training.ablations.jobs import ClipJob, draw_all, guide, read_clips
from stillmotion.training.data import sprites
from stillmotion.training.plans.common import POCKET
from stillmotion.training.plans.errors import ConfigError
from stillmotion.training.sampling.ddim import ddim


def parts(row):
    plan = registry.read(registry.find(ablate.CONFIG), row.without)
    losses = {name for name in ("reg", "trs", "dc") if getattr(plan.loss, name)}
    return losses | ({"mapping"} if plan.model.mapping else set()) | ({"tokens"} if plan.model.tokens else set())


def test_every_row_adds_something_to_the_previous_row():
    """A wrong setting would give a row that is not the paper's. The last row has no training, only other sampling."""
    trained = [parts(row) for row in ablate.ROWS if not row.alpha]
    assert trained == [set(), {"trs"}, {"trs", "dc"}, {"trs", "dc", "reg", "mapping"}, parts(ablate.ROWS[-1])]
    assert parts(ablate.ROWS[-1]) == {"trs", "dc", "reg", "mapping", "tokens"}
    assert ablate.ROWS[-1].model == ablate.ROWS[-2].key
    assert set(ablate.PAPER) == {row.key for row in ablate.ROWS}


def test_an_unknown_row_is_named():
    assert [row.key for row in ablate.select_rows("baseline, mg")] == ["baseline", "mg"]
    with pytest.raises(ConfigError, match="no row 'magic'; the rows are baseline, trs, dc, mapping, tokens, mg"):
        ablate.select_rows("baseline,magic")


def test_prompts_of_the_splits_and_of_the_reference_are_apart():
    """Validation prompts, for the choice of loss weights, and real clips must not overlap with the scored prompts."""
    options = ablate.Options(out=POCKET, tokenizer=POCKET, budget=ablate.Budget(prompts=200))
    spans = []
    for split in SPLITS:
        jobs = ablate.jobs(replace(options, split=split), ablate.ROWS[0], 0)
        assert sum(job.count for job in jobs) == 200
        assert jobs[-1].first + jobs[-1].count == SPLITS[split] + 200
        spans.append(range(jobs[0].first, SPLITS[split] + 200 + 1000))
    assert not set(spans[0]) & set(spans[1])


def test_ddim_gives_back_the_latents_when_eps_is_known():
    """With eps = (x - sqrt(abar) x_0) / sqrt(1 - abar), every step predicts x_0 for any guidance."""
    g, levels = torch.Generator().manual_seed(0), alpha_bars("linear").double()
    x_0, noise = (torch.randn(2, 3, 4, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))

    def predict(x, t, context):
        level = levels[t].view(-1, 1, 1, 1, 1)
        return (x - level.sqrt() * torch.cat([x_0, x_0])) / (1 - level).sqrt()

    prompt = torch.zeros(2, 1, 1)
    latents = ddim(predict, noise, prompt, prompt, levels, steps=7, guidance=5.0)
    torch.testing.assert_close(latents, x_0)
    guided_x = ddim(predict, noise, prompt, prompt, levels, steps=7, guidance=5.0, guide=lambda x, eps, sigma: x + 1)
    torch.testing.assert_close(guided_x, x_0 + 1)


def test_the_mitigating_gradient_draws_frames_together_and_clips_apart():
    g = torch.Generator().manual_seed(1)
    x_0, eps = torch.randn(2, 6, 4, 8, 8, generator=g), torch.randn(2, 6, 4, 8, 8, generator=g)
    pulled = guide(40.0)(x_0, eps, 5.0)
    assert pulled.diff(dim=1).abs().mean() < x_0.diff(dim=1).abs().mean()
    alone = guide(40.0)(x_0[1:], eps[1:], 5.0)
    torch.testing.assert_close(pulled[1:], alone)


def test_clips_are_sampled_once_and_again_after_a_change(tmp_path, monkeypatch):
    calls = []

    def fake(job):
        calls.append(job.alpha)
        write_tensors(
            {"clips": torch.full((1, 16, 3, 64, 64), 51, dtype=torch.uint8)}, job.file, {"digest": job.digest()}
        )

    class Pool:
        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def submit(self, f, job):
            from concurrent.futures import Future

            future = Future()
            future.set_result(fake(job))
            return future

    monkeypatch.setattr(drawing, "ProcessPoolExecutor", Pool)
    weights = tmp_path / "weights"
    write_tensors({"w": torch.zeros(3)}, weights)
    job = ClipJob(model=weights, file=tmp_path / "c", alpha=0.0, seed=0, steps=2, first=0, count=1, tokenizer=tmp_path)
    draw_all([job], 2)
    draw_all([job], 2)
    assert calls == [0.0]
    assert [clip.shape for clip in read_clips([job])] == [(16, 3, 64, 64)]
    torch.testing.assert_close(next(read_clips([job])), torch.full((16, 3, 64, 64), 0.2))
    draw_all([replace(job, alpha=40.0)], 2)
    write_tensors({"w": torch.ones(3)}, weights)
    draw_all([replace(job, alpha=40.0)], 2)
    assert calls == [0.0, 40.0, 40.0]


TELLING = """
import logging
import os
import sys
import time
from pathlib import Path

import torch

from stillmotion.training.ablations.jobs import Job


class Telling(Job):
    def tensors(self):
        logging.getLogger("stillmotion").info("row 1 of %d is drawn", self.count)
        return {"clips": torch.zeros(1)}


class Endless(Job):
    def tensors(self):
        self.file.write_text(str(os.getpid()))
        time.sleep(600)


if __name__ == "__main__":
    from telling import Endless
    from stillmotion.training.ablations.jobs import draw_all

    here = Path(sys.argv[1])
    settings = {"seed": 0, "steps": 2, "first": 0, "count": 1, "tokenizer": here}
    draw_all([Endless(model=here / "weights", file=here / "pid", **settings)], 2)
"""


@pytest.mark.slow
def test_the_log_of_a_sampling_process_is_shown(tmp_path, monkeypatch, capfd):
    """A file of clips can take half an hour."""
    (tmp_path / "telling.py").write_text(TELLING)
    monkeypatch.syspath_prepend(tmp_path)
    weights = tmp_path / "weights"
    write_tensors({"w": torch.zeros(3)}, weights)
    settings = {"seed": 0, "steps": 2, "first": 0, "count": 7, "tokenizer": tmp_path}
    draw_all([import_module("telling").Telling(model=weights, file=tmp_path / "c", **settings)], 2)
    assert "row 1 of 7 is drawn" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the process in /proc")
def test_nothing_draws_on_when_the_command_is_ended(tmp_path):
    """With SIGTERM, which ends the process immediately."""
    (tmp_path / "telling.py").write_text(TELLING)
    write_tensors({"w": torch.zeros(3)}, tmp_path / "weights")
    command = subprocess.Popen([sys.executable, tmp_path / "telling.py", tmp_path])
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    child = int((tmp_path / "pid").read_text())
    assert not has_ended(child)
    command.terminate()
    command.wait()
    wait_for(lambda: has_ended(child))


def wait_for(done, seconds=300):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


def has_ended(pid):
    """Whether a process has ended; a zombie counts as ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@pytest.mark.slow
def test_a_whole_ablation_small(tmp_path, comfyui_dir, monkeypatch):
    """Two trained rows and one that only samples: the command trains, samples, scores, reports; then it resumes."""
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    out = tmp_path / "out"
    arguments = ["ablate", "harivo", "--quick", "--rows", "baseline,tokens,mg", "--out", str(out)]
    arguments += [
        "--steps",
        "1",
        "--prompts",
        "3",
        "--sampling",
        "1",
        "--set",
        "train.batch=1",
        "--set",
        "train.log_every=1",
    ]
    monkeypatch.setattr(ablate, "QUICK", replace(ablate.QUICK, clips=2))
    monkeypatch.setattr(ablate, "score", partial(score, draws=20))  # each draw needs a Frechet distance
    monkeypatch.setattr(ablate, "compare", partial(compare, draws=20))
    assert main(arguments) == 0
    report = json.loads((out / "ablation.json").read_text())
    assert list(report["rows"]) == ["baseline", "+ tokens", "+ MG"]
    assert list(report["minus_first"]) == ["+ tokens", "+ MG"]
    assert {"pocket_fvd", "direction", "flicker", "shape"} <= set(report["rows"]["baseline"])
    text = (out / "ablation.md").read_text()
    assert "| + MG |" in text
    assert "787.87" in text
    with Image.open(out / "slices.png") as picture:
        assert picture.height > 300
    logged = (out / "tokens-0" / "log.jsonl").read_text()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("clips/*/*.safetensors")}
    assert len(times) == 3
    assert main(arguments) == 0
    assert (out / "tokens-0" / "log.jsonl").read_text() == logged
    assert {path: path.stat().st_mtime_ns for path in out.rglob("clips/*/*.safetensors")} == times


def test_the_motions_of_the_prompts_come_in_turn():
    assert [clip.motion for clip in sprites.held_out(5, motions=drawing.MOTIONS)] == list(drawing.MOTIONS)
