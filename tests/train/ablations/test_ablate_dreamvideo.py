"""The ablation of DreamVideo: its rows, the sampling of each row, stages, and a complete small run."""

import json
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from stillmotion.evaluation.judges.video_judge import FRAMES
from stillmotion.evaluation.scores.score import compare, score
from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.assembly import dreamvideo_model
from stillmotion.model_patches.diffusers_host import dreamvideo as host
from stillmotion.model_patches.diffusers_host.pocket import load_pocket
from stillmotion.model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.model_patches.systems import DREAMVIDEO
from stillmotion.model_patches.vidrd.config import VidrdConfig
from stillmotion.training.__main__ import main
from stillmotion.training.ablations import dreamvideo as ablate_dreamvideo
from stillmotion.training.ablations.dreamvideo import OURS, STAGES, TABLES, WITHOUT, select_rows
from stillmotion.training.ablations.image_jobs import ImageJob, PocketRetention, Row, first_frame, stage_prompt
from stillmotion.training.ablations.jobs import PocketModel, noise_of
from stillmotion.training.data import sprites
from stillmotion.training.sampling.ddim import ddim
from stillmotion.training.sampling.image_guided import Scales, guided_eps

POCKET = PocketConfig()
SIZES = {
    "block_channels": POCKET.unet_channels,
    "attention": POCKET.unet_attention,
    "heads": (POCKET.heads,) * 3,
    "layers_per_block": POCKET.unet_layers,
    "context_dim": POCKET.context,
}


def file_of(path, unet, *, motion=True):
    """An untrained DreamVideo file with the pocket's sizes and without zero weights."""
    torch.manual_seed(0)
    branch = RetentionConfig(
        **SIZES, linear_projection=False, hint_channels=(16, 32, 96), temporal="frozen" if motion else "none"
    )
    betas = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
    layers = VidrdConfig(**SIZES, conv_layers=1, dropout=0.0, spatial=False, embedding="branch", **betas).to_dict()
    config = DreamVideoConfig(branch=branch, layers=layers if motion else None, motion=motion)
    model = dreamvideo_model(config)
    host.start_from(model.branch, unet)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "controlnet" in name:
                weight.add_(torch.randn_like(weight) * 0.02)
        model.branch.controlnet_cond_embedding.conv_out.weight.mul_(50)  # type: ignore[operator, union-attr]
    weights = {k: v.half() for k, v in model.state_dict().items()}
    checkpoint.save(path, system=DREAMVIDEO, config=config.to_dict(), weights=weights)
    return path


@pytest.fixture(scope="module")
def unet(root):
    return load_pocket(root / "pocket" / "pocket.safetensors").unet


@pytest.fixture(scope="module")
def model(tmp_path_factory, unet):
    return file_of(tmp_path_factory.mktemp("model") / "dreamvideo.safetensors", unet)


@pytest.fixture
def tokenizer(comfyui_dir):
    return comfyui_dir / "comfy" / "sd1_tokenizer"


def test_each_row_changes_the_setting_of_its_table():
    assert (OURS.text, OURS.image, OURS.branch) == (3.0, 3.0, True)
    for name, scales in (("s_i", (1, 2, 3, 5, 10)), ("s_t", (1, 3, 7.5, 12)), ("both", (1, 2, 3, 5, 7.5))):
        fields = {"s_i": ["image"], "s_t": ["text"], "both": ["image", "text"]}[name]
        assert list(TABLES[name].values()) == [replace(OURS, **dict.fromkeys(fields, scale)) for scale in scales]
        assert OURS in TABLES[name].values()
    assert list(TABLES["parts"].values())[:2] == [OURS, WITHOUT]
    assert [row.noised for row in TABLES["parts"].values()] == [None, None, 0.5, 0.75, 0.9]
    assert select_rows("all") == (*TABLES, STAGES)


def test_predictions_that_cancel_are_left_out_and_the_rest_is_equation_5():
    """Without text, or with a white image, two of the three predictions are one."""

    def predict(x_t, t, context, image):
        calls.append(len(x_t))
        return torch.sin(x_t + context.mean((1, 2))[:, None, None] + 3 * image.mean((1, 2, 3))[:, None, None])

    g = torch.Generator().manual_seed(0)
    x, context, empty = (torch.randn(1, 2, 3, generator=g) for _ in range(3))
    image = torch.rand(1, 3, 4, 4, generator=g)
    white, whole, t = torch.ones_like(image), Scales(text=5.0, image=3.0), 500
    for row, text, condition_image, count in (
        (Row(text=5.0, image=3.0), context, image, 3),
        (Row(text=5.0, image=3.0, caption=False), empty, image, 2),
        (Row(text=5.0, image=3.0, shown=False), context, white, 2),
    ):
        calls = []
        eps = guided_eps(predict, x, t, text, empty, condition_image, row.scales)
        assert calls == [count]
        expected = guided_eps(predict, x, t, text, empty, condition_image, whole)
        torch.testing.assert_close(eps, expected)


def job_of(model, tokenizer, path, **changes):
    settings = {"seed": 0, "steps": 2, "first": 7, "count": 1, "length": 0, "rows": (OURS,), "staged": OURS}
    return ImageJob(model=model, motion=None, file=path, tokenizer=tokenizer, **(settings | changes))


@pytest.mark.slow
def test_rows_and_stages_have_the_named_effects(model, tokenizer, tmp_path):
    noised = replace(WITHOUT, noised=0.1)
    rows = (OURS, WITHOUT, Row(shown=False), noised, TABLES["modes"]["text alone"])
    job = job_of(model, tokenizer, tmp_path / "v", rows=rows, length=2, steps=10)
    tensors = job.tensors()
    assert tensors["clips"].shape == (5, 1, FRAMES, 3, 64, 64)
    assert tensors["stages"].shape == (1, 2 * FRAMES, 3, 64, 64)
    with_branch, without, blank, still, told_alone = tensors["clips"][:, 0]
    (prompt,) = job.prompts()
    plain = PocketModel(model, tokenizer)  # the same motion model without a branch
    context = plain.context(sprites.caption(prompt))
    noise = noise_of(0, 7)
    options = {"steps": 10, "guidance": WITHOUT.text}
    alone = plain.pictures(ddim(plain.handle.predict, noise, context, plain.empty, plain.levels, **options))
    assert (alone[0].int() - without.int()).abs().max() <= 1
    assert (without.int() - told_alone.int()).abs().max() > 1  # a white image is not the same as no branch
    assert (with_branch.int() - blank.int()).abs().max() > 1
    image = first_frame(prompt)
    assert (still.float() / 255 - image).abs().mean() < 0.05  # with little noise, every frame is the image
    assert torch.equal(tensors["stages"][0, :FRAMES], with_branch)
    retention = PocketRetention(model, None, tokenizer)
    turned, last = stage_prompt(prompt, 1), with_branch[-1:].float() / 255
    assert {prompt.motion, turned.motion} == {"up", "down"}
    second = retention.pictures(retention.draw_from_image(turned, last, noise_of(0, 7, 1), OURS, steps=10))[0]
    other = retention.pictures(retention.draw_from_image(turned, image, noise_of(0, 7, 1), OURS, steps=10))[0]
    same, changed = ((clip.float() - tensors["stages"][0, FRAMES:]).abs().mean() for clip in (second, other))
    assert same < 0.01 < 0.1 < changed  # the image has an effect; in 0..255


def test_the_prompt_turns_back_at_every_stage():
    for prompt in sprites.held_out(5, motions=("right", "left", "up", "down", "still")):
        forth, back, again = (stage_prompt(prompt, stage) for stage in range(3))
        assert forth == prompt == again
        assert (back == prompt) == (prompt.motion == "still")


def test_the_file_of_a_clip_depends_on_all_its_settings(model, tmp_path):
    def name(**changes):
        return job_of(model, tmp_path, tmp_path / "v", **changes).digest()

    rows = (OURS, WITHOUT)
    assert len({name(), name(length=2), name(rows=rows), name(seed=1), name(staged=WITHOUT)}) == 5


@pytest.mark.slow
def test_a_whole_ablation_of_dreamvideo_small(model, tmp_path, comfyui_dir, monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    for of in (score, compare):
        monkeypatch.setattr(ablate_dreamvideo, of.__name__, partial(of, draws=20))  # each draw needs a Frechet distance
    out = tmp_path / "out"
    arguments = ["ablate", "dreamvideo", "--quick", "--prompts", "2", "--sampling", "2", "--model", str(model)]
    assert main([*arguments, "--out", str(out)]) == 0
    data = json.loads((out / "ablation.json").read_text())
    assert [name for name in data if name in (*TABLES, STAGES)] == [*TABLES, STAGES]
    assert list(data["parts"]) == list(TABLES["parts"])
    assert data["parts"]["branch"] == data["s_i"]["s_i 3"] == data["s_t"]["s_t 3"] == data["both"]["both 3"]
    assert data[STAGES]["stage 1"] == data["parts"]["branch"]
    assert list(data[STAGES]) == ["stage 1", "stage 2"]
    scores = {"fff_ssim", "pocket_fff", "contrast", "colour_drift", "class_drift", "pocket_fvd", "direction", "shape"}
    assert scores <= set(data["parts"]["branch"])
    assert len(data[STAGES]["stage 2"]["drifts"]["colour_drift"]) == FRAMES
    others = [*list(TABLES["parts"])[1:], *list(TABLES["modes"])[1:]]
    assert list(data["changes"]) == [f"minus {name}" for name in others]
    with_branch, alone = list(data["modes"].values())[:2]
    for name in ("fff_ssim", "class_drift", "pocket_fvd"):
        change = with_branch[name][0] - alone[name][0]
        assert data["changes"]["minus text alone"][name][0] == pytest.approx(change, abs=2e-5)
    assert "| without branch |" in (out / "ablation.md").read_text()
    for name in ("curves.png", "first_frames.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 900


@pytest.mark.slow
def test_the_first_frame_rows_alone_on_a_branch_beside_the_bundled_motion_model(
    unet, tmp_path, comfyui_dir, monkeypatch
):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    for of in (score, compare):
        monkeypatch.setattr(ablate_dreamvideo, of.__name__, partial(of, draws=20))
    alone, out = file_of(tmp_path / "alone.safetensors", unet, motion=False), tmp_path / "out"
    arguments = ["ablate", "dreamvideo", "--rows", "parts", "--prompts", "2", "--sampling", "1", "--model", str(alone)]
    assert main([*arguments, "--out", str(out)]) == 0
    data = json.loads((out / "ablation.json").read_text())
    assert list(data["parts"]) == list(TABLES["parts"])
    assert not {"modes", "s_i", "s_t", "both", STAGES} & set(data)


def test_missing_or_invalid_options_are_reported_first(model, tmp_path, comfyui_dir):
    common = ["ablate", "dreamvideo", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"nowhere\.safetensors does not exist.*a DreamVideo file of the pocket model"):
        main([*common, "--model", str(tmp_path / "nowhere.safetensors")])
    with pytest.raises(SystemExit, match="there is no table 'x'; the tables are parts, modes, s_i, s_t, both, stages"):
        main([*common, "--rows", "x"])
    with pytest.raises(SystemExit, match="has its own motion model; omit --motion"):
        main([*common, "--model", str(model), "--motion", str(model)])
    with pytest.raises(SystemExit, match="--motion is not an option of `ablate artv`"):
        main(["ablate", "artv", "--motion", str(model), "--out", str(tmp_path)])
