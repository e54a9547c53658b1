"""ART-V's training on a tiny random base: samples, trained parts, exact resuming, the exported file."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.artv.config import POCKET, SD21, ArtvConfig
from stillmotion.model_patches.artv.guidance import MASKS, Weights
from stillmotion.model_patches.artv.masked import masked_noise, static_noise
from stillmotion.model_patches.artv.model import ArtvModel
from stillmotion.model_patches.diffusers_host.artv import ArtvUNet
from stillmotion.model_patches.diffusers_host.pocket import new_text_encoder, new_unet, new_vae
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.model_patches.systems import ARTV
from stillmotion.training import registry
from stillmotion.training.__main__ import main
from stillmotion.training.data.latents import Latents, tensors_hash, weights_hash
from stillmotion.training.engine.loop import ChangedRun, fit
from stillmotion.training.plans.artv import ArtvDataTable, ArtvModelTable, ArtvPlan, ArtvSamplesTable
from stillmotion.training.plans.errors import ConfigError
from stillmotion.training.plans.run import TrainTable
from stillmotion.training.sampling.autoregressive import (
    FrameConditions,
    FrameModel,
    Settings,
    guided_eps,
    noise_of,
    roll,
)
from stillmotion.training.systems import artv, bases
from stillmotion.training.systems.artv import ArtvTask, RollPreview, artv_config
from stillmotion.training.systems.bases import Base, clip_ids
from stillmotion.training.systems.preview import averaged, decoded, save_grid
from stillmotion.training.tools.doctor import gradient_norms

SMALL = PocketConfig(unet_channels=(32, 64), unet_attention=(False, True), vae_channels=(32, 32, 32), context=32)
CLIPS, FRAMES = 6, 8


@pytest.fixture
def base(comfyui_dir):
    torch.manual_seed(0)
    unet, vae, text = new_unet(SMALL), new_vae(SMALL), new_text_encoder(SMALL)
    for module in (unet, vae, text):
        module.eval().requires_grad_(False)
    return Base(unet, vae, text, SMALL, clip_ids(comfyui_dir / "comfy" / "sd1_tokenizer"), weights_hash(unet))


@pytest.fixture
def plan(tmp_path):
    return ArtvPlan(
        train=TrainTable(out=tmp_path / "run", steps=4, batch=2, lr=2e-3, warmup=1, save_every=2),
        data=ArtvDataTable(frames=FRAMES),
        model=ArtvModelTable(unet=False, mask_channels=(32, 32), mask_heads=(2, 2), adapter_blocks=1, anchor_ff=1),
        samples=ArtvSamplesTable(every=0),
    )


def numbered():
    """Clips in which frame j of clip i has the value 100 i + j, which identifies the origin of a sample."""
    values = 100.0 * torch.arange(CLIPS).view(CLIPS, 1, 1, 1, 1) + torch.arange(FRAMES).view(1, FRAMES, 1, 1, 1)
    return values.expand(-1, -1, 4, 8, 8).half()


def task_of(base, plan, *, values=None, nonzero=True):
    """nonzero: zero weights are changed, so that all parts get gradients."""
    torch.manual_seed(1)
    latents = torch.randn(CLIPS, FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(3)).half()
    captions = [f"clip {i}" for i in range(CLIPS)]
    cache = Latents(latents if values is None else values, [i / 7 for i in range(FRAMES)], 0, captions)
    task = ArtvTask(base, artv_config(plan.model, base), plan, cache)
    if nonzero:
        with torch.no_grad():
            for parameter in task.artv.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return task


def fresh(base):
    """A second base with the same weights: a training may change the first one, and hosts set hooks."""
    unet = new_unet(SMALL)
    unet.load_state_dict(base.unet.state_dict())
    return replace(base, unet=unet.eval().requires_grad_(False))


def where(latent):
    """(clip, frame) of a latent of `numbered`."""
    return divmod(round(latent.float().mean().item()), 100)


def test_a_sample_is_a_frame_with_the_two_before_it_and_one_anchor_of_the_window(base, plan):
    plan = replace(plan, data=replace(plan.data, anchor_window=3))
    task = task_of(base, plan, values=numbered())
    frames = task.draw(list(range(120)))
    level = frames.alpha_bar.view(-1, 1, 1, 1)
    clean = (frames.y_t - (1 - level).sqrt() * frames.noise) / level.sqrt()
    counts = Counter()
    for k in range(120):
        clip, i = where(clean[k])
        assert where(frames.references[k, 0]) == (clip, i - 1)
        assert where(frames.references[k, 1]) == (clip, max(i - 2, 0))
        other, anchor = where(frames.anchor[k])
        assert other == clip
        assert max(0, i - 3) <= anchor < i
        counts[i, i - anchor] += 1
    assert {i for i, _ in counts} == set(range(1, FRAMES))
    assert {distance for _, distance in counts} == {1, 2, 3}


def test_conditions_are_left_out_independently_and_levels_fill_their_range(base, plan):
    task = task_of(base, plan)
    draws = [task.random_values(k) for k in range(3000)]
    texts = [not caption for k in range(3000) for caption in task.captions([k])]
    dropped = {
        "text": texts,
        "references": [draw.no_references for draw in draws],
        "anchor": [draw.no_anchor for draw in draws],
    }
    for name, values in dropped.items():
        assert sum(values) / 3000 == pytest.approx(0.1, abs=0.02), name
    for one, other in (("text", "references"), ("references", "anchor"), ("text", "anchor")):
        both = sum(a and b for a, b in zip(dropped[one], dropped[other], strict=True))
        assert both / 3000 == pytest.approx(0.01, abs=0.007), (one, other)
    levels = torch.tensor([draw.level for draw in draws]).double()
    assert (levels.min(), levels.max()) == (0, 550)
    assert levels.mean().item() == pytest.approx(275, rel=0.05)
    pairs = torch.tensor([[draw.level, draw.t] for draw in draws]).double().T
    assert abs(torch.corrcoef(pairs)[0, 1].item()) < 0.06


def test_sample_k_is_a_pure_function_of_the_seed_and_k(base, plan):
    task, again = task_of(base, plan), task_of(fresh(base), plan)
    together, alone = task.draw([7, 3]), again.draw([3])
    for name in ("y_t", "t", "context", "references", "anchor", "augmentation", "level", "no_references", "no_anchor"):
        assert torch.equal(getattr(together, name)[1:], getattr(alone, name)), name
    other = task_of(fresh(base), replace(plan, train=replace(plan.train, seed=1))).draw([3])
    assert not torch.equal(other.noise, alone.noise)


def test_the_loss_is_the_error_of_the_blended_noise(base, plan):
    """Eq. 4 and 7; a sample without references has no mask."""
    plan = replace(plan, data=replace(plan.data, drop_references=0.5))
    task = task_of(base, plan)
    frames = task.draw(list(range(8)))
    assert frames.no_references.any()
    assert not frames.no_references.all()
    with torch.no_grad():
        eps, m = task.predict(frames)
        out = task(list(range(8)))
    assert out["loss"].item() == pytest.approx((eps - frames.noise).square().mean().item(), rel=1e-5)
    assert m[frames.no_references].abs().max() == 0
    assert m[~frames.no_references].min() > 0
    assert out["mask"].item() == pytest.approx(m[~frames.no_references].mean().item())


@pytest.mark.slow
@pytest.mark.parametrize("unet", [False, True])
def test_one_loss_reaches_all_trained_parts(base, plan, unet):
    plan = replace(plan, model=replace(plan.model, unet=unet))
    task = task_of(base, plan)
    task([0, 1, 2, 3])["loss"].backward()
    trained = {n for n, p in task.named_parameters() if p.requires_grad}
    assert {n for n, p in task.named_parameters() if p.grad is not None} == trained
    assert {n.split(".")[0] for n in trained} == ({"artv", "unet"} if unet else {"artv"})
    assert {n for n in trained if n.startswith("artv.")} == {f"artv.{n}" for n, _ in task.artv.named_parameters()}
    lengths = gradient_norms(task, task([0, 1, 2, 3])["loss"])
    assert set(lengths) == {"reference", "anchors", "mask", *(["unet"] if unet else [])}
    assert min(lengths.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("unet", [False, True])
def test_training_learns_and_does_not_change_frozen_weights(base, plan, unet):
    changed = replace(plan.model, unet=unet)
    plan = replace(plan, model=changed, train=replace(plan.train, steps=12, lr_decay_share=0.1, save_every=99))
    task = task_of(base, plan, nonzero=False)
    frozen, text = task.frozen_hash(), weights_hash(base.text)

    def score():
        with torch.no_grad():
            return task(list(range(24)))["eps"].item()

    first = score()
    fit(task, plan.train)
    assert score() < first
    assert task.frozen_hash() == frozen
    assert weights_hash(base.text) == text
    assert (weights_hash(base.unet) == base.hash) == (not unet)


@pytest.mark.slow
@pytest.mark.parametrize("unet", [False, True])
def test_a_resumed_run_is_the_run_that_was_not_stopped(base, plan, tmp_path, unet):
    class Stop(Exception):
        pass

    def stop(_average):
        raise Stop

    plan = replace(plan, model=replace(plan.model, unet=unet), train=replace(plan.train, ema=0.9999))
    each = [base, fresh(base), fresh(base)]
    average = fit(task_of(each[0], plan), plan.train)
    cut = replace(plan, train=replace(plan.train, out=tmp_path / "cut"))
    with pytest.raises(Stop):
        fit(task_of(each[1], cut), cut.train, on_save=stop)
    again = fit(task_of(each[2], cut, nonzero=False), cut.train)
    assert average.keys() == again.keys()
    assert all(torch.equal(average[n], again[n]) for n in average)
    assert any(n.startswith("unet.") for n in average) == unet


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "now"), [("data.max_level", 300), ("data.drop_anchor", 0.2), ("model.static", "reversed")]
)
def test_a_changed_setting_is_named_on_resume(base, plan, key, now):
    plan = replace(plan, train=replace(plan.train, steps=1))
    fit(task_of(base, plan), plan.train)
    table, name = key.split(".")
    changed = replace(plan, **{table: replace(getattr(plan, table), **{name: now})})
    with pytest.raises(ChangedRun, match=rf"{table}\.{name} was .* is now {now}"):
        fit(task_of(fresh(base), changed), changed.train)


@pytest.mark.slow
def test_the_file_is_the_averaged_model(base, plan):
    """The exported file on the untrained base gives the same result as the trainer's own forward."""
    other = fresh(base)
    task = task_of(base, plan)
    average = fit(task, plan.train)
    path = plan.train.out / "artv.safetensors"
    artv.write(task, average, path)
    file = checkpoint.load(path, expect=ARTV)
    assert file.header["base"] == base.hash
    assert not path.with_name("unet.safetensors").exists()
    frames = task.draw([0, 1, 2])
    with averaged(task, {n: v.half().float() for n, v in average.items()}), torch.no_grad():
        expected, mask = task.predict(frames)
    model = ArtvModel(ArtvConfig.from_dict(file.config))
    model.load_state_dict({k: v.float() for k, v in file.weights.items()})
    loaded = replace_host(task, ArtvUNet(other.unet, model))
    with torch.no_grad():
        eps, m = loaded.predict(frames)
    assert torch.equal(eps, expected)
    assert torch.equal(m, mask)


def replace_host(task, host):
    task.host = host
    return task


@pytest.mark.slow
def test_a_trained_u_net_is_a_separate_file_that_the_other_file_names(base, plan):
    plan = replace(plan, model=replace(plan.model, unet=True))
    task = task_of(base, plan)
    average = fit(task, plan.train)
    path = plan.train.out / "artv.safetensors"
    artv.write(task, average, path)
    unet = load_file(path.with_name("unet.safetensors"))
    assert unet.keys() == base.unet.state_dict().keys()
    assert all(torch.equal(v, average[f"unet.{k}"].half()) for k, v in unet.items())
    file = checkpoint.load(path, expect=ARTV)
    assert file.header["base"] == tensors_hash(unet) != base.hash
    assert not any("unet" in name for name in file.weights)


def test_a_run_can_start_from_a_file(base, plan, tmp_path):
    first = task_of(base, plan)
    path = tmp_path / "artv.safetensors"
    artv.write(first, {f"artv.{n}": p for n, p in first.artv.named_parameters()}, path)
    second = task_of(fresh(base), plan, nonzero=False)
    artv.start_from(second, str(path))
    weights = first.artv.state_dict()
    assert all(torch.equal(v, weights[k].half().float()) for k, v in second.artv.state_dict().items())
    wider = task_of(fresh(base), replace(plan, model=replace(plan.model, anchor_ff=2)))
    with pytest.raises(ConfigError, match="does not fit this model"):
        artv.start_from(wider, str(path))


def rolled(task, frames, **options):
    settings = options.pop("settings", Settings(steps=2))
    context, empty = task.context(["a", "b"]), task.context(["", ""])
    model = FrameModel(task.host, task.table)
    return roll(model, context, empty, shape=(2, 4, 8, 8), frames=frames, settings=settings, **options)


def test_a_frame_of_a_roll_is_the_same_whatever_follows(base, plan):
    task = task_of(base, plan)
    long = rolled(task, 4)
    assert torch.equal(rolled(task, 2), long[:, :2])
    assert not torch.equal(rolled(task, 2, seed=1), long[:, :2])
    assert not torch.equal(rolled(task, 2, numbers=[0, 5])[1], long[1, :2])
    assert torch.equal(rolled(task, 2, numbers=[0, 5])[0], long[0, :2])


def test_a_roll_begins_with_the_frame_that_is_given(base, plan):
    task = task_of(base, plan)
    first = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    video = rolled(task, 3, first=first)
    assert torch.equal(video[:, 0], first)
    assert not torch.equal(video, rolled(task, 3, first=first + 1))


def test_masks_of_a_rollout_are_passed_to_the_callback(base, plan):
    task = task_of(base, plan)
    calls = []
    rolled(task, 3, on_mask=lambda frame, t, m: calls.append((frame, t, m)))
    assert [frame for frame, _, _ in calls] == [0, 0, 1, 1, 2, 2]
    assert [t for _, t, _ in calls[:2]] == [999, 500]
    assert all(m.shape == (2, 1, 8, 8) for _, _, m in calls)
    assert all((m.max() == 0) == (frame == 0) for frame, _, m in calls)
    calls.clear()
    rolled(task, 2, settings=Settings(steps=2, mask=False), on_mask=lambda frame, t, m: calls.append(m))
    assert all(m.max() == 0 for m in calls)


@pytest.mark.parametrize("masks", MASKS)
def test_guidance_is_equation_8_of_separate_predictions(base, plan, masks):
    """Predictions of the dynamic network, blended by the mask of all conditions, or each blended by its own mask."""
    task = task_of(base, plan)
    g = torch.Generator().manual_seed(5)
    y_t, references, anchor, noise = (
        torch.randn(*shape, generator=g) for shape in ((2, 4, 8, 8), (2, 2, 4, 8, 8), (2, 4, 8, 8), (2, 3, 4, 8, 8))
    )
    context, empty = task.context(["a", "b"]), task.context(["", ""])
    weights = Weights(reference=0.3, anchor=0.7, text=2.0)
    no, yes, t = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool), torch.tensor([600, 600])

    def one(prompt, no_references, no_anchor):
        """(eps, m, the dynamic network's eps)."""
        levels = torch.full((2,), 200)
        options = {"no_references": no_references, "no_anchor": no_anchor}
        return task.host(y_t, t, prompt, references, anchor, noise, levels, **options)

    def eps(part, m):
        alpha_bar = task.host.alpha_bars[t].view(-1, 1, 1, 1).to(y_t)
        return (
            part if masks == "one for each" else masked_noise(part, static_noise(y_t, references[:, 0], alpha_bar), m)
        )

    with torch.no_grad():
        outputs = {"full": one(context, no, no), "text": one(empty, no, no)}
        outputs |= {"reference": one(context, yes, no), "anchor": one(context, no, yes)}
        parts = {name: result[0 if masks == "one for each" else 2] for name, result in outputs.items()}
        full, m = parts["full"], outputs["full"][1]
        expected = full + 0.3 * (full - parts["reference"]) + 0.7 * (full - parts["anchor"])
        expected = eps(expected + 2.0 * (full - parts["text"]), m)
        conditions, settings = FrameConditions(references, anchor, noise), Settings(weights=weights, masks=masks)
        result, mask = guided_eps(task.host, y_t, 600, context, empty, conditions, settings)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mask, m)
        without = FrameConditions(references, None, noise)
        settings = replace(settings, weights=Weights(reference=0, anchor=5, text=0))
        alone, _ = guided_eps(task.host, y_t, 600, context, empty, without, settings)
        torch.testing.assert_close(alone, outputs["anchor"][0], atol=1e-5, rtol=1e-5)


def test_the_noise_of_a_frame_belongs_to_the_seed_the_video_and_the_frame():
    same = noise_of(0, 1, 2, (4, 8, 8))
    assert torch.equal(noise_of(0, 1, 2, (4, 8, 8)), same)
    others = [noise_of(*key, (4, 8, 8)) for key in ((1, 1, 2), (0, 2, 2), (0, 1, 3))]
    assert not any(torch.equal(other, same) for other in others)


@pytest.mark.slow
def test_pictures_while_training_are_rolls_of_the_average(base, plan):
    samples = ArtvSamplesTable(every=2, prompts=("a", "b", "c"), steps=2, columns=3, guidance=3.0)
    plan = replace(plan, samples=samples)
    task = task_of(base, plan)
    average = fit(task, plan.train, on_step=RollPreview(task, base.vae, plan))
    files = sorted((plan.train.out / "samples").iterdir())
    assert [p.name for p in files] == ["step-00000002.png", "step-00000004.png"]
    with averaged(task, average):
        context, empty = task.context(["a", "b", "c"]), task.context([""] * 3)
        settings = Settings(steps=2, weights=Weights(text=2.0))
        model = FrameModel(task.host, task.table)
        latents = roll(model, context, empty, shape=(3, 4, 8, 8), frames=3, settings=settings)
    save_grid(decoded(base.vae, latents, 3), plan.train.out / "again.png")
    with Image.open(files[-1]) as image, Image.open(plan.train.out / "again.png") as again:
        assert image.size == (3 * 32, 3 * 32)
        assert image.tobytes() == again.tobytes()


def test_the_bundled_configs_are_read():
    pocket, full = (registry.read(registry.find(name)) for name in ("artv_pocket", "artv_sd21"))
    assert (pocket.system, full.system) == ("artv", "artv")
    assert not pocket.model.unet
    assert full.model.unet
    run, data = full.train, full.data
    assert (run.lr, run.lr_end, run.ema, run.beta2, run.batch, run.steps) == (1e-5, 1e-5, 0.9999, 0.999, 480, 258_000)
    assert (data.drop, data.drop_references, data.drop_anchor, data.anchor_window, data.max_level) == (
        *(0.1, 0.1, 0.1),
        *(10, 550),
    )
    assert (full.samples.guidance, full.samples.reference, full.samples.anchor, full.samples.level) == (
        *(7.5, 0.25, 0.25),
        200,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.max_level=1000", r"data\.max_level is 1000; it must be at most 999"),
        ("data.drop_anchor=1.5", r"data\.drop_anchor is 1\.5; it must be at most 1"),
        ("model.anchor=clip", r"model\.anchor is 'clip'; use one of latent"),
        ("model.static=oracle", r"model\.static is 'oracle'; use one of consistent, paper, reversed"),
        ("data.anchor_window=0", r"data\.anchor_window is 0; it must be at least 1"),
    ],
)
def test_invalid_values_of_a_config_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        registry.read(registry.find("artv_pocket"), [change])


def test_sizes_that_make_no_model_are_named(base):
    with pytest.raises(ConfigError, match=r"\[model\]: ART-V config: 3 heads do not divide 32 channels"):
        artv_config(ArtvModelTable(heads=(3, 3), mask_channels=(32, 32), mask_heads=(2, 2)), base)


def test_the_paper_s_sizes_are_those_of_its_config():
    """Table 2, from the config of the paper's run and Stable Diffusion 2.1's sizes."""
    unet = SimpleNamespace(config=SimpleNamespace(attention_head_dim=bases.SD21_HEADS))
    plan = registry.read(registry.find("artv_sd21"))
    base: Any = SimpleNamespace(unet=unet, config=bases.SD21)
    assert artv_config(plan.model, base) == SD21


def test_activations_that_are_computed_again_give_the_same_gradients(base, plan):
    """base.checkpointing: the blocks of the U-Net, with the attached parts, run again in the backward pass."""
    plan = replace(plan, model=replace(plan.model, unet=True))
    gradients = []
    for checkpointing in (False, True):
        task = task_of(fresh(base), plan)
        if checkpointing:
            task.unet.enable_gradient_checkpointing()
            task.unet.train()
        losses = [task([2 * i, 2 * i + 1])["loss"] for i in range(2)]  # two forwards before the first backward
        for loss in losses:
            loss.backward()
        gradients.append({n: p.grad for n, p in task.named_parameters() if p.grad is not None})
        with torch.no_grad():
            plain = task.unet(torch.ones(1, 4, 8, 8), torch.tensor([5]), task.context(["a"])).sample
        expected = base.unet(torch.ones(1, 4, 8, 8), torch.tensor([5]), task.context(["a"])).sample
        assert torch.equal(plain, expected)  # called by itself, the U-Net is the image model
    assert gradients[0].keys() == gradients[1].keys()
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, msg=name)


@pytest.mark.slow
def test_latents_doctor_and_train_as_people_type_it(tmp_path, comfyui_dir, caplog):
    """All commands with the bundled pocket model, in the smallest sizes; the file stays below 5 MB."""
    caplog.set_level("INFO")
    small = ["--set", "data.frames=4", "--set", "train.batch=1", "--latents", str(tmp_path / "latents")]
    sizes = ["--clips", "2", "--size", "64", "--frames", "4", "--out", str(tmp_path / "latents")]
    assert main(["latents", "artv_pocket", *sizes]) == 0
    assert main(["doctor", "artv_pocket", *small]) == 0
    for line in (
        "parameters_base_frozen_m",
        "parameters_mask_m",
        "gradient on reference",
        "a complete step of 1 samples",
    ):
        assert line in caplog.text
    quick = ["--set", "samples.steps=1", "--set", "samples.columns=2", "--set", "train.steps=1", "--out", str(tmp_path)]
    assert main(["train", "artv_pocket", *small, *quick]) == 0
    file = tmp_path / "artv.safetensors"
    assert file.stat().st_size < 5e6
    assert ArtvConfig.from_dict(checkpoint.load(file, expect=ARTV).config) == POCKET
    with Image.open(tmp_path / "samples" / "step-00000001.png") as picture:
        assert picture.size == (2 * 64, 3 * 64)
