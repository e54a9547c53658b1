"""LoRA and ControlNet of the pocket: only they are trained, a stopped run resumes, other programs read their files."""

import copy
import shutil
import tomllib

import pytest
import torch
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from safetensors.torch import load_file

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.diffusers_host import pocket as diffusers_pocket
from stillmotion.training.__main__ import CONFIGS
from stillmotion.training.data import latents, sprites, styles
from stillmotion.training.engine.loop import ChangedRun
from stillmotion.training.plans.run import TrainTable
from stillmotion.training.pocket import adapters, control, lora
from stillmotion.training.pocket.unet import noised_frames, place

RUN = {"steps": 12, "batch": 4, "lr": 5e-3, "warmup": 1, "lr_decay_share": 0.1, "ema": 0.5, "log_every": 1}
LORA = {"style": "glow", "clips": 3, "frames": 2, "rank": 2, "alpha": 4}
CONTROL = {"low_threshold": 0.1, "high_threshold": 0.2, "sketch_share": 0.5}


@pytest.fixture
def base(small, monkeypatch):
    """A fresh copy of the tiny pocket model, used instead of a file."""
    pocket = copy.deepcopy(small)
    for module in (lora, control):
        monkeypatch.setattr(module, "base_of", lambda _path: copy.deepcopy(pocket))
    return pocket


@pytest.fixture
def train(base, shards, comfyui_dir, tmp_path):
    """train(kind, **settings of the run) -> the file; the same command in the same folder resumes."""

    def command(kind, table=None, **changes):
        tokenizer, run = comfyui_dir / "comfy" / "sd1_tokenizer", RUN | changes
        if kind == "control":
            return control.train(tmp_path, {"control": CONTROL | (table or {}), "train": run}, tokenizer, shards=shards)
        tables = {"lora": LORA | (table or {}), "train": run}
        lora.encode(tmp_path, tables["lora"], None)
        return lora.train(tmp_path, tables, tokenizer)

    return command


def task_of(kind, base, vocabulary, shards):
    data = latents.read(shards, base.vae)
    return {
        "lora": lambda: lora.LoraTask(base, vocabulary, data, rank=2, alpha=2),
        "control": lambda: control.ControlTask(base, vocabulary, data),
    }[kind]()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "control"])
def test_it_begins_as_the_base_and_gradients_reach_it_alone(base, vocabulary, shards, kind):
    plain = copy.deepcopy(base.unet)
    task = task_of(kind, base, vocabulary, shards)
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 16, 16, generator=g), torch.tensor([10, 900]), torch.randn(2, 77, 32, generator=g)
    assert torch.equal(task.eps(*inputs, [0, 1]), plain(*inputs).sample)
    task(list(range(8)))["loss"].backward()
    with_gradient = {name for name, p in task.named_parameters() if p.grad is not None and p.grad.any()}
    mark = (
        ".lora_B." if kind == "lora" else "control.controlnet_"
    )  # only weights that start at zero have a gradient in the first step
    assert with_gradient
    assert all(mark in name for name in with_gradient)
    assert {n for n, p in task.named_parameters() if p.requires_grad} >= with_gradient


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "control"])
def test_it_learns_and_the_base_stays(base, vocabulary, shards, tmp_path, kind):
    frozen = {k: v.clone() for k, v in base.unet.state_dict().items()}
    task = task_of(kind, base, vocabulary, shards)
    before = sum(task(list(range(i, i + 4)))["loss"].item() for i in range(0, 16, 4))
    weights_of = lora.base_weights if kind == "lora" else lambda unet: unet.state_dict()
    adapters.fit_beside(task, TrainTable(out=tmp_path / "run", **RUN), weights_of)
    after = sum(task(list(range(i, i + 4)))["loss"].item() for i in range(0, 16, 4))
    assert after < before
    assert all(torch.equal(v, frozen[k]) for k, v in weights_of(task.unet).items())


@pytest.mark.slow
def test_a_base_that_changes_is_noticed(base, vocabulary, shards, tmp_path):
    task = task_of("lora", base, vocabulary, shards)
    next(p for n, p in task.unet.named_parameters() if n.endswith("conv_out.bias")).requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"1 frozen weights changed, first conv_out\.bias; nothing was exported"):
        adapters.fit_beside(task, TrainTable(out=tmp_path / "run", **RUN), lora.base_weights)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "control"])
def test_stopped_and_resumed_is_never_stopped(train, tmp_path, kind):
    """When the last state is lost, the same command repeats the last steps and writes the same file."""
    whole = load_file(train(kind, steps=6, save_every=3))
    shutil.rmtree(tmp_path / "state" / "step-00000006")
    assert (tmp_path / "state" / "step-00000003").is_dir()
    again = load_file(train(kind, steps=6, save_every=3))
    assert again.keys() == whole.keys()
    assert all(torch.equal(v, again[k]) for k, v in whole.items())


def test_a_changed_run_is_refused(train):
    train("lora", steps=1)
    with pytest.raises(ChangedRun, match=r"lora\.alpha was 4, is now 8"):
        train("lora", {"alpha": 8}, steps=1)


@pytest.mark.slow
def test_the_lora_has_kohyas_keys_and_diffusers_reads_them(train, base):
    path = train("lora", steps=3, lr=0.1)
    weights = load_file(path)
    sides = ("lora_down.weight", "lora_up.weight", "alpha")
    modules = {k.split(".")[0] for k in weights}
    assert set(weights) == {f"{module}.{side}" for module in modules for side in sides}
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0" in modules
    assert {weights[f"{module}.alpha"].item() for module in modules} == {4.0}
    named, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(str(path))[:2]
    with_lora = copy.deepcopy(base.unet)
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(named, alphas, with_lora)
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 16, 16, generator=g), torch.tensor([10, 900]), torch.randn(2, 77, 32, generator=g)
    merged = copy.deepcopy(base.unet)
    names = {name.replace(".", "_"): module for name, module in merged.named_modules()}
    for module in modules:
        down, up = (weights[f"{module}.{side}"].float() for side in sides[:2])
        change = (up.flatten(1) @ down.flatten(1)) * 4 / 2
        target = names[module.removeprefix("lora_unet_")].weight
        target.data += change.view_as(target)
    with torch.no_grad():
        expected = merged(*inputs).sample
        torch.testing.assert_close(with_lora(*inputs).sample, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(expected, base.unet(*inputs).sample, rtol=0.01, atol=0.01)


@pytest.mark.slow
def test_the_controlnet_file_is_read_by_diffusers(train, base):
    path = train("control", steps=3)
    file = checkpoint.load(path, expect="pocket_control")
    assert all(k.startswith("control_model.") and v.dtype == torch.float16 for k, v in file.weights.items())
    again = diffusers_pocket.load_control(path)
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 77, 32)
    down, middle = again(*inputs, controlnet_cond=torch.rand(1, 3, 128, 128), return_dict=False)
    assert len(down) == 4
    assert middle.abs().max() > 0, "the ControlNet has learned something"


def test_hints_are_of_the_very_frame_that_is_noised(base, vocabulary, shards):
    task = task_of("control", base, vocabulary, shards)
    for k in range(12):
        clip, frame = noised_place(task, k)
        scene, times = task.latents.clip(clip), [task.latents.times[frame]]
        pictures = sprites.mask(scene, times).repeat(1, 3, 1, 1), sprites.render(scene, times)
        hints = [control.edges(p).repeat_interleave(2, 2).repeat_interleave(2, 3) for p in pictures]
        assert any(torch.equal(task.hints([k]), hint) for hint in hints)


def noised_place(task, k):
    clip, frame = place(task.latents, task.seed, k)
    latents = noised_frames(task.latents, task.tables, task.seed, [k])[0]
    assert torch.equal(latents[0], task.latents.values[clip][frame].float())
    return clip, frame


def test_plain_is_the_default_style_and_an_unknown_style_is_named():
    clip = sprites.clip(0, 1)
    assert torch.equal(sprites.render(clip, [0.5]), sprites.render(clip, [0.5], style="plain"))
    with pytest.raises(ValueError, match="there is no style 'neon'; use one of plain, glow"):
        sprites.render(clip, [0.5], style="neon")


def test_the_glow_is_measured_in_glowing_frames_alone():
    clips = sprites.held_out(60)
    colours = [clip.sprite.colour for clip in clips]
    for style in sprites.STYLES:
        frames = torch.cat([sprites.render(c, [i % 16 / 15], style=style) for i, c in enumerate(clips)])
        glows = styles.glow(frames, colours) > styles.GLOWS
        assert glows.tolist() == [style == "glow"] * len(clips)
    assert styles.glow(torch.zeros(1, 3, 64, 64), ["red"]).isnan().all()


def test_the_recipes_are_whole():
    for kind, table in (("lora", LORA), ("control", CONTROL)):
        recipe = tomllib.loads((CONFIGS / f"{kind}_pocket.toml").read_text())
        assert recipe[kind].keys() == table.keys()
        assert recipe["train"]["steps"] > 0
