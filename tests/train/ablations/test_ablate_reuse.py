"""The ablation of reuse: its settings, videos equal to a loop of Algorithm 1, and a complete small run."""

import json
import os
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image

from stillmotion.evaluation.judges.video_judge import FRAMES
from stillmotion.evaluation.scores.score import score
from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.systems import VIDRD_DECODER
from stillmotion.model_patches.vidrd.config import DecoderConfig
from stillmotion.model_patches.vidrd.decoder import TemporalDecoder
from stillmotion.model_patches.vidrd.reuse import Config
from stillmotion.training.__main__ import main
from stillmotion.training.ablations import vidrd as ablate_reuse
from stillmotion.training.ablations.jobs import GUIDANCE, noise_of, pocket_model
from stillmotion.training.ablations.vidrd import CONFIGS, PAPER, PARTS, SWEEPS, WIDEST, VideoJob, joins_of
from stillmotion.training.data import sprites
from stillmotion.training.plans.common import POCKET
from stillmotion.training.sampling.ddim import timesteps

S = 2


def test_every_sweep_goes_through_the_papers_setting_and_changes_one_number():
    for name, sweep in SWEEPS.items():
        assert PAPER in sweep.values(), name
        field = {"M": "overlap", "alpha": "recycle", "beta": "staged_guidance"}[name]
        for value, config in sweep.items():
            changed = {k for k in vars(PAPER) if getattr(config, k) != getattr(PAPER, k)}
            assert getattr(config, field) == value
            assert changed <= {field}
    assert list(PARTS.values())[-1] == PAPER == Config()
    assert len(set(CONFIGS)) == len(CONFIGS) == 13


@torch.no_grad()
def plain_video(model, prompt, noises, config, steps):
    """Algorithm 1 as in the paper, with a cache of all steps; the noises are those of three clips."""
    levels, times = model.levels, timesteps(len(model.levels), steps)
    context, done, cache, z_0 = model.context(sprites.caption(prompt)), [], {}, noises[0]
    a = config.recycle / (1 + config.recycle**2) ** 0.5
    for number, fresh in enumerate(noises):
        z = fresh
        if number:
            mirrored = z_0.flip(1)
            z = a * mirrored + (1 - a * a) ** 0.5 * fresh
            z[:, : config.overlap] = mirrored[:, : config.overlap]
        z_0 = z
        for k, t in enumerate(times):
            z = z.clone()
            for j in range(config.overlap if number else 0):
                if k < config.staged_guidance * steps * (1 - j / config.overlap) - 1e-9:
                    z[:, j] = cache[k][:, j]
            cache[k] = z.flip(1)
            at = torch.full((2,), t)
            both = torch.cat([model.empty, context])
            plain, conditional = model.handle.predict(torch.cat([z, z]), at, both).chunk(2)
            eps = plain + GUIDANCE * (conditional - plain)
            level = levels[t].item()
            x_0 = (z - (1 - level) ** 0.5 * eps) / level**0.5
            level = levels[times[k + 1]].item() if k + 1 < steps else 1.0
            z = level**0.5 * x_0 + (1 - level) ** 0.5 * eps
        done.append(z)
    return model.pictures(torch.cat(done, 1))


@pytest.mark.slow
@pytest.mark.parametrize("config", [PAPER, Config(overlap=8, recycle=1.0, staged_guidance=1.0)], ids=["paper", "much"])
def test_videos_are_those_of_algorithm_1(comfyui_dir, tmp_path, monkeypatch, config):
    monkeypatch.setattr(ablate_reuse, "CONFIGS", [Config(overlap=0, recycle=0.0, staged_guidance=0.0), config])
    tokenizer = comfyui_dir / "comfy" / "sd1_tokenizer"
    job = VideoJob(
        model=POCKET / "motion.safetensors",
        file=tmp_path / "v",
        seed=3,
        steps=S,
        first=7,
        count=1,
        tokenizer=tokenizer,
        length=3,
    )
    alone, reused = job.clips()[0]
    model, noises = pocket_model(job.model, tokenizer), [noise_of(3, 7, clip) for clip in range(3)]
    assert torch.equal(reused, plain_video(model, job.prompts()[0], noises, config, S)[0])
    assert torch.equal(alone[:FRAMES], reused[:FRAMES])
    fresh = plain_video(model, job.prompts()[0], noises[1:2], config, S)[0]
    assert torch.equal(alone[FRAMES : 2 * FRAMES], fresh)


@pytest.fixture
def decoder(tmp_path):
    """A file of an untrained temporal-aware decoder for the pocket, which decodes like the pocket's decoder."""
    torch.manual_seed(0)
    fresh = TemporalDecoder(DecoderConfig(block_channels=(64, 64, 128), layers_per_block=1, group_norm="per_frame"))
    path, weights = tmp_path / "temporal_decoder.safetensors", fresh.state_dict()
    checkpoint.save(path, system=VIDRD_DECODER, config=fresh.config.to_dict(), weights=weights, header={})
    return path


@pytest.mark.slow
def test_the_video_of_the_paper_s_setting_is_decoded_once_more(comfyui_dir, tmp_path, monkeypatch, decoder):
    monkeypatch.setattr(ablate_reuse, "CONFIGS", [PARTS["FNR"], PAPER])
    rules: dict[str, Any] = {"file": tmp_path / "v", "seed": 0, "steps": 1, "first": 0, "count": 1, "length": 2}
    rules |= {"model": POCKET / "motion.safetensors", "tokenizer": comfyui_dir / "comfy" / "sd1_tokenizer"}
    with torch.no_grad():
        fnr, paper, again = VideoJob(**rules, decoder=decoder).clips()[0].int()
    assert (paper - fnr).abs().max() > 1
    assert (paper - again).abs().max() <= 1
    assert VideoJob(**rules, decoder=decoder).digest() != VideoJob(**rules).digest()


def test_the_file_of_a_video_depends_on_all_its_settings(tmp_path):
    def job(**changes):
        settings: dict[str, Any] = {"seed": 0, "steps": 2, "first": 0, "count": 1, "length": 2} | changes
        return VideoJob(model=POCKET / "motion.safetensors", file=tmp_path / "v", tokenizer=tmp_path, **settings)

    names = {job().digest(), job(length=3).digest(), job(seed=1).digest(), job(steps=3).digest()}
    assert len(names) == 4


def test_the_first_clip_keeps_enough_for_every_row():
    from stillmotion.model_patches.vidrd.reuse import guided_frames

    for config in CONFIGS:
        for k in range(25):
            assert guided_frames(k, 25, config) <= guided_frames(k, 25, WIDEST)


def test_joins_are_those_between_clips():
    video = torch.zeros(3 * FRAMES, 3, 4, 4)
    video[FRAMES:] += 0.5
    video[2 * FRAMES :] += 0.25
    assert joins_of(video)["join"] == pytest.approx(0.375)


@pytest.mark.slow
def test_a_whole_ablation_of_reuse_small(tmp_path, comfyui_dir, monkeypatch, decoder):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    monkeypatch.setattr(ablate_reuse, "score", partial(score, draws=20))  # each draw needs a Frechet distance
    out = tmp_path / "out"
    arguments = ["ablate", "vidrd", "--quick", "--prompts", "3", "--sampling", "1", "--out", str(out)]
    arguments += ["--decoder", str(decoder)]
    assert main(arguments) == 0
    report = json.loads((out / "ablation.json").read_text())
    assert list(report["parts"]) == list(PARTS)
    assert list(report["beta"]) == ["beta 0", "beta 0.2", "beta 0.4", "beta 0.8", "beta 1"]
    assert report["beta"]["beta 0.4"] == report["parts"]["FNR + PNS + DSG"] == report["M"]["M 4"]
    assert {"join", "seam", "mirror", "pocket_fvd", "shape"} <= set(report["parts"]["FNR"])
    plain, temporal = report["truth"].values()
    assert plain["psnr"] == pytest.approx(temporal["psnr"], abs=1e-3)
    assert 20 < plain["psnr"][0] < 50
    assert 0 < plain["flicker"][0] == pytest.approx(temporal["flicker"][0], rel=1e-3)
    assert "| FNR + PNS |" in (out / "ablation.md").read_text()
    with Image.open(out / "sweeps.png") as picture:
        assert picture.height > 1000
    (file,) = out.rglob("videos/*.safetensors")
    write_time = file.stat().st_mtime_ns
    assert main(arguments) == 0
    assert file.stat().st_mtime_ns == write_time


def test_options_of_the_other_system_are_refused(tmp_path, comfyui_dir):
    with pytest.raises(SystemExit, match="--steps is not an option of `ablate vidrd`"):
        main(["ablate", "vidrd", "--steps", "3", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="--length is not an option of `ablate harivo`"):
        main(["ablate", "harivo", "--length", "3", "--out", str(tmp_path)])
