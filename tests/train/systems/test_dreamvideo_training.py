"""DreamVideo's training on a tiny random base: samples, trained parts, initial weights, exact resuming."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.assembly import dreamvideo_model, retention_branch
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel
from stillmotion.model_patches.diffusers_host import dreamvideo as host
from stillmotion.model_patches.diffusers_host import vidrd as vidrd_host
from stillmotion.model_patches.diffusers_host.pocket import new_text_encoder, new_unet, new_vae
from stillmotion.model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig
from stillmotion.model_patches.dreamvideo.retention import RetentionBranch
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.model_patches.systems import DREAMVIDEO, MOTION, VIDRD
from stillmotion.model_patches.vidrd.model import VidrdModel, is_temporal
from stillmotion.training import registry
from stillmotion.training.__main__ import main
from stillmotion.training.data import sprites
from stillmotion.training.data.latents import Latents, weights_hash
from stillmotion.training.engine.loop import ChangedRun, fit
from stillmotion.training.plans.common import BaseTable
from stillmotion.training.plans.dreamvideo import (
    DreamVideoDataTable,
    DreamVideoModelTable,
    DreamVideoPlan,
    DreamVideoSamplesTable,
)
from stillmotion.training.plans.errors import ConfigError
from stillmotion.training.plans.run import TrainTable
from stillmotion.training.sampling.image_guided import Scales, guided_eps
from stillmotion.training.systems import bases, dreamvideo
from stillmotion.training.systems.bases import Base, clip_ids
from stillmotion.training.systems.dreamvideo import DreamVideoTask, ImagePreview
from stillmotion.training.systems.dreamvideo_start import copy_weights, load_start
from stillmotion.training.systems.layers import layers_config
from stillmotion.training.systems.preview import averaged
from stillmotion.training.tools.doctor import gradient_norms

SMALL = PocketConfig(unet_channels=(32, 64), unet_attention=(False, True), vae_channels=(32, 32, 32), context=32)
CLIPS, FRAMES, PIXELS = 6, 4, 32


@pytest.fixture
def base(comfyui_dir):
    torch.manual_seed(0)
    unet, vae, text = new_unet(SMALL), new_vae(SMALL), new_text_encoder(SMALL)
    for module in (unet, vae, text):
        module.eval().requires_grad_(False)
    return Base(unet, vae, text, SMALL, clip_ids(comfyui_dir / "comfy" / "sd1_tokenizer"), weights_hash(unet))


@pytest.fixture
def plan(tmp_path):
    return DreamVideoPlan(
        train=TrainTable(out=tmp_path / "run", steps=4, batch=2, lr=2e-3, warmup=1, save_every=2),
        data=DreamVideoDataTable(frames=FRAMES),
        model=DreamVideoModelTable(conv_layers=2, dropout=0.2),
        samples=DreamVideoSamplesTable(every=0),
    )


def cache_of(with_captions=True):
    g = torch.Generator().manual_seed(3)
    values, images = torch.randn(CLIPS, FRAMES, 4, 8, 8, generator=g), torch.rand(CLIPS, 3, PIXELS, PIXELS, generator=g)
    times = sprites.frame_times(FRAMES)
    if not with_captions:
        return Latents(values.half(), times, 0)
    return Latents(values.half(), times, 0, [f"clip {i}" for i in range(CLIPS)], images=(images * 255).byte())


def task_of(base, plan, *, nonzero=True, with_captions=True):
    """nonzero: zero weights are changed, so that the image affects all parts and all parts get gradients."""
    torch.manual_seed(1)
    task = DreamVideoTask(base, load_start(plan, base), plan, cache_of(with_captions))
    if nonzero:
        move(task)
    return task


def move(module, by=0.05):
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=g))


def fresh(base):
    """A second base with the same weights: hosts set hooks, and a start file changes the U-Net."""
    unet = new_unet(SMALL)
    unet.load_state_dict(base.unet.state_dict())
    return replace(base, unet=unet.eval().requires_grad_(False))


def first_frames(task) -> Any:
    """First frames in bytes."""
    return task.cache.images


def trained(task):
    return {n for n, p in task.named_parameters() if p.requires_grad}


def vidrd_file(path, base, plan, *, spatial=True):
    """A VidRD model with weights as after training."""
    torch.manual_seed(5)
    model = VidrdModel(replace(layers_config(plan.model, base, FRAMES), spatial=spatial))
    move(model)
    checkpoint.save(path, system=VIDRD, config=model.config.to_dict(), weights=model.state_dict())
    return model


def test_the_image_is_the_first_frame_as_pixels(base, plan):
    plan = replace(plan, data=replace(plan.data, drop_image=0.0))
    task = task_of(base, plan)
    batch = task.draw([0, 1, 2])
    for row, image in zip(batch.rows.tolist(), batch.image, strict=True):
        assert torch.equal(image * 255, first_frames(task)[row].float())
    rendered_task = task_of(fresh(base), plan, with_captions=False)
    batch = rendered_task.draw([0, 1, 2])
    for row, image in zip(batch.rows.tolist(), batch.image, strict=True):
        assert torch.equal(image, sprites.render(sprites.clip(0, row), [0.0], size=PIXELS)[0])


@pytest.mark.slow
def test_text_and_image_are_left_out_independently(base, plan, monkeypatch):
    task = task_of(base, plan)
    monkeypatch.setattr(task, "context", lambda captions: torch.zeros(len(captions), 77, 32))  # not checked here
    image = torch.cat([task.draw(list(range(k, k + 100))).image for k in range(0, 3000, 100)])
    white = (image == 1).flatten(1).all(1).tolist()
    empty = [not caption for k in range(3000) for caption in task.captions([k])]
    assert sum(white) / 3000 == pytest.approx(0.1, abs=0.02)
    assert sum(empty) / 3000 == pytest.approx(0.1, abs=0.02)
    assert sum(a and b for a, b in zip(white, empty, strict=True)) / 3000 == pytest.approx(0.01, abs=0.007)


def test_sample_k_is_a_pure_function_of_the_seed_and_k(base, plan):
    task, again = task_of(base, plan), task_of(fresh(base), plan)
    together, alone = task.draw([7, 3]), again.draw([3])
    for name in ("x_t", "noise", "t", "context", "image"):
        assert torch.equal(getattr(together, name)[1:], getattr(alone, name)), name
    other = task_of(fresh(base), replace(plan, train=replace(plan.train, seed=1))).draw([3])
    assert not torch.equal(other.noise, alone.noise)


def test_the_loss_is_the_error_of_the_noise_and_sees_the_image(base, plan):
    plan = replace(plan, model=replace(plan.model, dropout=0.0), data=replace(plan.data, drop_image=0.0))
    task = task_of(base, plan)
    batch = task.draw([0, 1, 2])
    with torch.no_grad():
        eps = task.predict(batch.x_t, batch.t, batch.context, batch.image)
        blank = task.predict(batch.x_t, batch.t, batch.context, torch.ones_like(batch.image))
        loss = task([0, 1, 2])["loss"].item()
    assert loss == pytest.approx((eps - batch.noise).square().mean().item(), rel=1e-5)
    assert (eps - blank).abs().max() > 1e-4


def test_a_fresh_branch_adds_nothing(base, plan):
    task = task_of(base, plan, nonzero=False)
    batch = task.draw([0, 1])
    with torch.no_grad():
        eps = task.predict(batch.x_t, batch.t, batch.context, batch.image)
        task.handle.strength = 0.0
        assert torch.equal(eps, task.predict(batch.x_t, batch.t, batch.context, batch.image))


@pytest.mark.parametrize("motion", [True, False])
@pytest.mark.parametrize("temporal", ["frozen", "none"])
def test_the_branch_and_the_temporal_layers_are_trained(base, plan, tmp_path, motion, temporal):
    vidrd_file(tmp_path / "v.safetensors", base, plan)
    plan = replace(
        plan,
        data=replace(plan.data, drop_image=0.0),
        model=replace(plan.model, motion=motion, temporal=temporal, start=str(tmp_path / "v.safetensors")),
    )
    task = task_of(base, plan)
    expected = {f"branch.{n}" for n, _ in task.branch.named_parameters() if not n.startswith("temporal.")}
    expected |= {f"motion.{n}" for n, _ in task.motion.named_parameters()} if motion else set()
    assert trained(task) == expected
    assert any(n.startswith("branch.temporal.") for n in task.state_dict()) == (temporal == "frozen")
    task([0, 1])["loss"].backward()
    assert {n for n, p in task.named_parameters() if p.grad is not None} == expected
    lengths = gradient_norms(task, task([0, 1])["loss"])
    assert set(lengths) == {"branch", *(["motion"] if motion else [])}
    assert min(lengths.values()) > 0


def test_recomputed_activations_give_the_same_gradients(base, plan):
    """Dropout has the same masks both times."""
    gradients = []
    for checkpointing in (False, True):
        each = fresh(base)
        if checkpointing:
            each.unet.enable_gradient_checkpointing()
        task = task_of(each, replace(plan, base=BaseTable(checkpointing=checkpointing)))
        task([0, 1])["loss"].backward()
        gradients.append({n: p.grad for n, p in task.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_training_learns_and_does_not_change_frozen_weights(base, plan, tmp_path):
    vidrd_file(tmp_path / "v.safetensors", base, plan)
    steps = replace(plan.train, steps=12, lr_decay_share=0.1, save_every=99)
    plan = replace(plan, model=replace(plan.model, start=str(tmp_path / "v.safetensors")), train=steps)
    task = task_of(base, plan, nonzero=False)
    frozen, text = task.frozen_hash(), weights_hash(base.text)

    def score():
        with torch.no_grad():
            return task(list(range(12)))["eps"].item()

    first = score()
    fit(task, plan.train)
    assert score() < first
    assert (task.frozen_hash(), weights_hash(base.text)) == (frozen, text)


def test_dropout_belongs_to_the_sample(base, plan):
    task = task_of(base, plan)
    together = task([5, 3])["eps"]
    alone = torch.stack([task([k])["eps"] for k in (5, 3)]).mean()
    torch.testing.assert_close(together, alone)
    with torch.no_grad():
        assert not torch.allclose(together, task([5, 3])["eps"], rtol=1e-4)  # dropout is off without gradients


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_not_stopped(base, plan, tmp_path):
    class Stop(Exception):
        pass

    def stop(_average):
        raise Stop

    vidrd_file(tmp_path / "v.safetensors", base, plan)
    plan = replace(plan, model=replace(plan.model, start=str(tmp_path / "v.safetensors")))
    each = [base, fresh(base), fresh(base)]
    average = fit(task_of(each[0], plan), plan.train)
    cut = replace(plan, train=replace(plan.train, out=tmp_path / "cut"))
    with pytest.raises(Stop):
        fit(task_of(each[1], cut), cut.train, on_save=stop)
    again = fit(task_of(each[2], cut, nonzero=False), cut.train)
    assert average.keys() == again.keys()
    assert all(torch.equal(average[n], again[n]) for n in average)
    assert {n.split(".")[0] for n in average} == {"branch", "motion"}


@pytest.mark.parametrize(("key", "now"), [("data.drop_image", 0.2), ("model.image_range", "signed")])
def test_a_changed_setting_is_named_on_resume(base, plan, key, now):
    plan = replace(plan, train=replace(plan.train, steps=1))
    fit(task_of(base, plan), plan.train)
    table, name = key.split(".")
    changed = replace(plan, **{table: replace(getattr(plan, table), **{name: now})})
    with pytest.raises(ChangedRun, match=rf"{table}\.{name} was .* is now {now}"):
        fit(task_of(fresh(base), changed), changed.train)


@pytest.mark.slow
def test_another_start_is_refused_on_resume_where_it_stays_in_the_model(base, plan, tmp_path):
    """The state contains the trained weights, but not the frozen weights of a start file."""
    vidrd_file(tmp_path / "v.safetensors", base, plan)
    plan = replace(plan, train=replace(plan.train, steps=1))
    fit(task_of(base, plan), plan.train)
    changed = replace(plan, model=replace(plan.model, start=str(tmp_path / "v.safetensors")))
    with pytest.raises(ChangedRun, match=r"start was \w+, is now"):
        fit(task_of(fresh(base), changed), changed.train)


def test_it_starts_as_the_vidrd_model(base, plan, tmp_path):
    """The paper's start: eps equals that of the VidRD file; the branch is a copy of its U-Net and temporal layers."""
    path = tmp_path / "v.safetensors"
    model, other = vidrd_file(path, base, plan), fresh(base)
    task = task_of(base, replace(plan, model=replace(plan.model, start=str(path))), nonzero=False)
    batch = task.draw([0, 1])
    handle = vidrd_host.attach(other.unet, model.eval())
    with torch.no_grad():
        expected = handle.predict(batch.x_t, batch.t, batch.context)
        assert torch.equal(task.predict(batch.x_t, batch.t, batch.context, batch.image), expected)
    tuned = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(task.branch.state_dict()[tuned], model.state_dict()[tuned])
    assert task.branch.temporal is not None
    copies = task.branch.temporal.state_dict()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in copies.items())
    assert any(k.startswith("mid_block") for k in copies)


@pytest.mark.slow
@pytest.mark.parametrize("spatial", [True, False])
def test_the_file_is_the_averaged_model(base, plan, tmp_path, spatial):
    """The exported file on the untrained base gives the same result as the trainer's own forward."""
    start, other = tmp_path / "v.safetensors", fresh(base)
    vidrd_file(start, base, plan, spatial=spatial)
    plan = replace(plan, model=replace(plan.model, start=str(start)))
    task = task_of(base, plan)
    average = fit(task, plan.train)
    path = plan.train.out / "dreamvideo.safetensors"
    dreamvideo.write(task, average, path)
    file = checkpoint.load(path, expect=DREAMVIDEO)
    assert (file.header["base"], file.header["frames"]) == (base.hash, str(FRAMES))
    assert any(not is_temporal(k) for k in file.weights if k.startswith("motion.")) == spatial
    batch = task.draw([0, 1, 2])
    halves = {n: v.half().float() for n, v in average.items()}
    copy_weights(task.unet, {n: v.half().float() for n, v in task.tuned.items()})
    copy_weights(
        task.branch, {n: v.half().float() for n, v in task.branch.state_dict().items() if n.startswith("temporal.")}
    )
    with averaged(task, halves), torch.no_grad():
        expected = task.predict(batch.x_t, batch.t, batch.context, batch.image)
    whole = dreamvideo_model(DreamVideoConfig.from_dict(file.config)).eval()
    whole.load_state_dict({k: v.float() for k, v in file.weights.items()})
    moving = vidrd_host.attach(other.unet, whole.motion)
    with torch.no_grad():
        eps = host.attach(other.unet, whole.branch, moving).predict(batch.x_t, batch.t, batch.context, batch.image)
    assert torch.equal(eps, expected)


def test_a_run_can_start_from_its_own_file(base, plan, tmp_path):
    first, path = task_of(base, plan), tmp_path / "d.safetensors"
    dreamvideo.write(first, {n: p for n, p in first.named_parameters() if p.requires_grad}, path)
    second = task_of(fresh(base), replace(plan, model=replace(plan.model, start=str(path))), nonzero=False)
    halves = {k: v.half().float() for k, v in first.state_dict().items()}
    assert all(
        torch.equal(v, halves[k]) for k, v in second.state_dict().items() if k.startswith(("branch.", "motion."))
    )
    signed = replace(plan, model=replace(plan.model, start=str(path), image_range="signed"))
    with pytest.raises(ConfigError, match=r"does not fit this model \(image_range"):
        load_start(signed, fresh(base))
    deeper = replace(plan, model=replace(plan.model, start=str(path), conv_layers=3))
    with pytest.raises(ConfigError, match=r"model\.conv_layers is 3, but d\.safetensors was trained with 2"):
        load_start(deeper, fresh(base))


def test_the_branch_alone_learns_on_a_motion_file(base, plan, tmp_path):
    path = tmp_path / "m.safetensors"
    sizes = MotionConfig(block_channels=SMALL.unet_channels, layers_per_block=SMALL.unet_layers)
    motion_model = MotionModel(sizes)
    move(motion_model)
    checkpoint.save(path, system=MOTION, config=sizes.to_dict(), weights=motion_model.state_dict())
    with pytest.raises(ConfigError, match=r"m\.safetensors is a motion file, whose layers are not trained here"):
        load_start(replace(plan, model=replace(plan.model, start=str(path))), base)
    plan = replace(plan, model=replace(plan.model, start=str(path), motion=False, temporal="none"))
    task = task_of(base, plan)
    assert {n.split(".")[0] for n in trained(task)} == {"branch"}
    average = fit(task, plan.train)
    out = plan.train.out / "dreamvideo.safetensors"
    dreamvideo.write(task, average, out)
    file = checkpoint.load(out, expect=DREAMVIDEO)
    assert {k.split(".")[0] for k in file.weights} == {"branch"}
    assert DreamVideoConfig.from_dict(file.config).layers is None


def test_the_branch_can_begin_as_a_controlnet(base, plan, tmp_path):
    """The weights of the ControlNet, and the frozen temporal layers of the motion model, which a ControlNet lacks."""
    path = tmp_path / "control.safetensors"
    sizes = replace(load_start(plan, base).config.branch, temporal="none")
    branch = RetentionBranch(sizes)
    move(branch)
    save_file(branch.state_dict(), path)
    task = task_of(base, replace(plan, model=replace(plan.model, controlnet=str(path))), nonzero=False)
    weights = branch.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in task.branch.state_dict().items() if not k.startswith("temporal."))
    assert task.branch.temporal is not None
    ups = replace(plan, model=replace(plan.model, controlnet=str(path), inject="up_blocks"))
    with pytest.raises(
        ConfigError, match=r"control\.safetensors does not fit \(inject is skips, but must be up_blocks\)"
    ):
        load_start(ups, base)


def test_unsuitable_initial_files_are_refused(base, plan, tmp_path):
    def message_of(**changes):
        with pytest.raises(ConfigError) as error:
            load_start(replace(plan, model=replace(plan.model, **changes)), base)
        return str(error.value)

    assert "does not exist" in message_of(start=str(tmp_path / "nothing.safetensors"))
    assert "model.start is empty: give a file with a motion model" in message_of(motion=False)
    alone = tmp_path / "branch.safetensors"
    branch = replace(load_start(plan, base).config.branch, temporal="none")
    model = dreamvideo_model(DreamVideoConfig(branch=branch))
    settings = DreamVideoConfig(branch=branch).to_dict()
    checkpoint.save(alone, system=DREAMVIDEO, config=settings, weights=model.state_dict())
    assert "without a motion model" in message_of(start=str(alone), temporal="none")
    wide = replace(base, unet=new_unet(replace(SMALL, unet_channels=(32, 96))))
    wide = replace(wide, config=replace(SMALL, unet_channels=(32, 96)))
    vidrd_file(tmp_path / "v.safetensors", wide, plan)
    assert "does not fit this model" in message_of(start=str(tmp_path / "v.safetensors"))


def test_latents_without_first_frames_are_refused(plan, monkeypatch, base, tmp_path):
    cache = replace(cache_of(), images=None)
    monkeypatch.setattr(bases, "load", lambda *_: base)
    monkeypatch.setattr(dreamvideo.latents, "for_training", lambda *_: cache)
    with pytest.raises(ConfigError, match="hold no first frames in pixels"):
        dreamvideo.prepare(plan, tmp_path)
    with pytest.raises(ValueError, match="no first frames of 64 x 64 pixels"):
        cache_of().image(0, 64)


@pytest.mark.parametrize("order", ["text first", "image first"])
def test_guidance_is_equation_5_of_separate_predictions(base, plan, order):
    task = task_of(base, plan)
    batch = task.draw([0, 1])
    empty, blank, t = task.context(["", ""]), torch.ones_like(batch.image), torch.tensor([600, 600])
    s_t, s_i = 3.0, 2.0

    def f(context, image):
        return task.predict(batch.x_t, t, context, image)

    with torch.no_grad():
        none, both = f(empty, blank), f(batch.context, batch.image)
        if order == "text first":
            middle = f(batch.context, blank)
            expected = none + s_t * (middle - none) + s_i * (both - middle)
        else:
            middle = f(empty, batch.image)
            expected = none + s_i * (middle - none) + s_t * (both - middle)
        scales = Scales(text=s_t, image=s_i, order=order)
        result = guided_eps(task.predict, batch.x_t, 600, batch.context, empty, batch.image, scales)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_pictures_while_training_show_the_image_and_its_clip(base, plan):
    table = DreamVideoSamplesTable(every=1, clips=2, prompts=("a", "b"), steps=2, columns=3)
    plan = replace(plan, samples=table)
    task = task_of(base, plan)
    preview = ImagePreview(task, base.vae, plan)
    pictures = preview.pictures()
    assert pictures.shape == (4, 1 + 3, 3, PIXELS, PIXELS)
    assert torch.equal(pictures[:2, 0] * 255, first_frames(task)[:2].float())
    assert (pictures[2:, 0] == 1).all()
    plan.train.out.mkdir()
    preview(1, {n: p.detach() for n, p in task.named_parameters() if p.requires_grad})
    with Image.open(plan.train.out / "samples" / "step-00000001.png") as picture:
        assert picture.size == (4 * PIXELS, 4 * PIXELS)


def test_the_bundled_configs_are_read_and_have_the_papers_values():
    pocket, full = (registry.read(registry.find(name)) for name in ("dreamvideo_pocket", "dreamvideo_sd21"))
    assert (pocket.system, full.system) == ("dreamvideo", "dreamvideo")
    assert (pocket.data.frames, full.data.frames) == (16, 8)
    assert (full.data.drop, full.data.drop_image, pocket.data.drop_image) == (0.1, 0.1, 0.1)
    for plan in (pocket, full):
        assert (plan.model.motion, plan.model.inject) == (True, "skips")
    assert (pocket.model.temporal, full.model.temporal) == ("none", "frozen")
    assert full.train.steps * full.train.batch / 340_000 == pytest.approx(5, rel=1e-3)


@pytest.mark.slow
def test_the_parameter_counts_at_stable_diffusion_2(comfyui_dir):
    """680.72 M parameters are trained, where the paper prints 680M; 364.23 M of them are the branch."""
    with torch.device("meta"):
        unet, _, _ = bases._new_sd21()
    plan: Any = registry.read(registry.find("dreamvideo_sd21"))
    whole: Any = SimpleNamespace(unet=unet, config=bases.SD21)
    with torch.device("meta"):
        start = load_start(plan, whole)
        branch = retention_branch(start.config)
    count = sum(p.numel() for p in branch.trained()) / 1e6
    assert count == pytest.approx(364.23, abs=0.005)
    assert count + sum(p.numel() for p in start.motion.parameters()) / 1e6 == pytest.approx(680.72, abs=0.005)


@pytest.mark.slow
def test_the_commands_train_resume_and_look(tmp_path, comfyui_dir, caplog):
    """All commands with the bundled pocket model, in the smallest sizes, from a new VidRD file."""
    caplog.set_level("INFO")

    def typed(*arguments):
        return main(list(map(str, arguments)))

    common = ["--latents", tmp_path / "latents", "--set", "train.batch=1", "--set", "data.frames=2"]
    latents = ["--clips", 2, "--size", 64, "--frames", 4, "--out", tmp_path / "latents"]
    assert typed("latents", "dreamvideo_pocket", *latents) == 0
    assert typed("doctor", "dreamvideo_pocket", *common) == 0
    assert "parameters_branch_m" in caplog.text
    assert re.search(r"; norm of the gradient on .*branch \d", caplog.text)
    vidrd = ["--set", "train.steps=1", "--set", "samples.every=0", "--out", tmp_path / "v"]
    assert typed("train", "vidrd_pocket", *common, *vidrd) == 0
    arguments = [*common, "--out", tmp_path / "run", "--set", "train.steps=2", "--set", "samples.steps=1"]
    arguments += ["--start", tmp_path / "v" / "vidrd.safetensors"]
    for _ in range(2):
        assert typed("train", "dreamvideo_pocket", *arguments) == 0
    file = checkpoint.load(tmp_path / "run" / "dreamvideo.safetensors", expect=DREAMVIDEO)
    assert RetentionConfig.from_dict(file.config["branch"]).downscale == 4
    with Image.open(tmp_path / "run" / "samples" / "step-00000002.png") as picture:
        assert picture.size == (3 * 64, 4 * 64)  # image and two frames, for both clips and two prompts
