"""HARIVO's training on a tiny random base: gradients of each loss, the exported file, resuming."""

import random
from dataclasses import replace

import pytest
import torch
from PIL import Image

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.diffusers_host.harivo import Maps, attach
from stillmotion.model_patches.diffusers_host.pocket import new_text_encoder, new_unet, new_vae
from stillmotion.model_patches.harivo.config import HarivoConfig
from stillmotion.model_patches.harivo.model import HarivoModel
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.model_patches.systems import HARIVO
from stillmotion.training.data.latents import Latents, weights_hash
from stillmotion.training.engine.loop import ChangedRun, fit
from stillmotion.training.plans.common import BaseTable, DataTable, SamplesTable
from stillmotion.training.plans.errors import ConfigError
from stillmotion.training.plans.harivo import HarivoLossTable, HarivoModelTable, HarivoPlan
from stillmotion.training.plans.run import TrainTable
from stillmotion.training.systems import harivo
from stillmotion.training.systems.bases import Base, clip_ids
from stillmotion.training.systems.harivo import HarivoTask, harivo_config
from stillmotion.training.systems.preview import Preview, averaged, decoded, sample, save_grid
from stillmotion.training.tools.doctor import gradient_norms

SMALL = PocketConfig(unet_channels=(32, 64), unet_attention=(False, True), vae_channels=(32, 32, 32), context=32)
FRAMES = 4


@pytest.fixture(scope="module")
def base(comfyui_dir):
    torch.manual_seed(0)
    unet, vae, text = new_unet(SMALL), new_vae(SMALL), new_text_encoder(SMALL)
    for module in (unet, vae, text):
        module.eval().requires_grad_(False)
    return Base(unet, vae, text, SMALL, clip_ids(comfyui_dir / "comfy" / "sd1_tokenizer"), weights_hash(unet))


@pytest.fixture
def plan(tmp_path):
    return HarivoPlan(
        train=TrainTable(out=tmp_path / "run", steps=4, batch=2, lr=2e-3, warmup=1, save_every=2),
        base=BaseTable(),
        data=DataTable(frames=FRAMES),
        model=HarivoModelTable(heads=4, max_frames=8, mapping_width=32, mapping_heads=4),
        loss=HarivoLossTable(queue=8, reg_frames=2),
        samples=SamplesTable(every=2, prompts=("a red star", "a blue circle"), steps=2, columns=3),
    )


@pytest.fixture
def make(base):
    """make(plan) -> a task without zero weights, so that all parts get gradients."""
    tasks = []

    def build(plan, *, nonzero=True):
        torch.manual_seed(1)
        cache = Latents(
            torch.randn(6, 8, 4, 8, 8).half(), [i / 7 for i in range(8)], 0, [f"clip {i}" for i in range(6)]
        )
        task = HarivoTask(base, harivo_config(plan.model, base, FRAMES), plan, cache)
        if nonzero:
            with torch.no_grad():
                for name, param in task.harivo.named_parameters():
                    if "proj_out" in name:
                        param.normal_(std=0.05)
        tasks.append(task)
        return task

    yield build
    for task in tasks:
        task.handle.remove()


def with_queue(task):
    with torch.no_grad():
        task.terms([10, 11])
    task.after_step(True)
    return task


ALL = {"temporal", "mapping", "tokens"}
REACHED = {"dsm": ALL, "reg": ALL, "trs": ALL, "dc": {*ALL, "head"}}


def test_each_loss_reaches_exactly_the_parts_that_the_paper_trains(make, plan, base):
    task = with_queue(make(plan))
    terms, _ = task.terms([0, 1])
    assert set(terms) == set(REACHED)
    for name, term in terms.items():
        lengths = gradient_norms(task, term)
        assert {part for part, length in lengths.items() if length > 0} == REACHED[name], name
    torch.stack(list(terms.values())).sum().backward()
    frozen = [*base.unet.parameters(), *base.text.parameters(), *base.vae.parameters()]
    assert all(p.grad is None for p in frozen)
    trained = {n.split(".")[0] for n, p in task.named_parameters() if p.requires_grad}
    assert trained == {"harivo", "head"}


def test_l_reg_of_an_untrained_model_is_zero(make, plan):
    """Eq. 2 without a temporal part: V and S are the same network, and both branches train the mapping network."""
    task = make(replace(plan, model=replace(plan.model, tokens=0)), nonzero=False)
    terms, _ = task.terms([0, 1])
    assert terms["reg"] < 1e-12  # an untrained model is the image model, up to the rounding of its two calls


def test_the_map_loss_is_that_of_the_whole_maps(make, plan):
    """The streamed loss of the training, compared with the loss computed from the complete maps of the host."""
    task = make(replace(plan, loss=replace(plan.loss, trs_queries=0, trs_heads="all")))
    streamed = task.terms([0, 1])[0]["trs"]
    batch = task.draw([0, 1])
    task.handle.keep_maps = Maps(queries=None, heads="all")
    with torch.no_grad():
        task.predict(batch.x_t, batch.t, batch.context)
    maps = [task.handle.maps[i].unflatten(0, (2, FRAMES)) for i in sorted(task.handle.maps)]
    layers = len(maps)
    assert layers > 1
    changes = [(m[:, 1:] - m[:, :-1]).square().mean() * (i + 1) / layers for i, m in enumerate(maps)]
    torch.testing.assert_close(streamed.detach(), torch.stack(changes).sum())


@pytest.mark.parametrize(
    ("row", "parts", "terms"),
    [
        ({"mapping": False, "tokens": 0, "reg": 0.0, "trs": 0.0, "dc": 0.0}, {"temporal"}, {"dsm"}),
        ({"mapping": False, "tokens": 0, "reg": 0.0, "dc": 0.0}, {"temporal"}, {"dsm", "trs"}),
        ({"mapping": False, "tokens": 0, "reg": 0.0}, {"temporal"}, {"dsm", "trs", "dc"}),
        ({"tokens": 0}, {"temporal", "mapping"}, {"dsm", "trs", "dc", "reg"}),
        ({}, ALL, {"dsm", "trs", "dc", "reg"}),
    ],
)
def test_a_row_of_the_ablation_has_its_parts_and_losses_only(make, plan, row, parts, terms):
    model = {k: v for k, v in row.items() if k in ("mapping", "tokens")}
    loss = {k: v for k, v in row.items() if k not in model}
    task = make(replace(plan, model=replace(plan.model, **model), loss=replace(plan.loss, **loss)))
    assert set(dict(task.harivo.named_children())) == parts
    assert (task.head is not None) == ("dc" in terms)
    out = task([0, 1])
    assert set(out) - {"loss", "eps", "eps_high"} == terms
    expected = sum(task.weights[name] * out[name] for name in terms)
    torch.testing.assert_close(out["loss"].detach(), expected)


def test_a_sample_is_a_pure_function_of_its_number(make, plan):
    task = make(plan)
    together, alone = task.draw([7, 3]), task.draw([3])
    for name in ("x_t", "noise", "t", "alpha_bar", "context", "rows", "pairs", "reg_frames"):
        torch.testing.assert_close(getattr(together, name)[1:], getattr(alone, name), rtol=1e-5, atol=1e-6)
    assert (together.pairs[:, 0] != together.pairs[:, 1]).all()
    assert together.reg_frames.shape == (2, 2)
    plain = replace(plan, data=replace(plan.data, drop=0.0))
    assert make(plain).captions([0]) == [f"clip {int(task.draw([0]).rows)}"]


def test_still_clips_can_be_sampled_more_often(make, plan, base):
    task = make(replace(plan, data=replace(plan.data, still_weight=3)))
    assert task.order == list(range(6))  # clips of video files are not drawn clips
    latents = Latents(torch.zeros(30, 4, 4, 8, 8), [0.0, 0.3, 0.6, 1.0], 0)
    task = HarivoTask(base, task.harivo.config, task.plan, latents)
    taken = [task.clip_of(k) for k in range(len(task.order))]
    task.handle.remove()
    assert all(taken.count(i) == (3 if latents.clip(i).motion == "still" else 1) for i in range(30))


def test_noise_is_added_by_linear_betas(make, plan):
    batch = make(plan).draw(list(range(20)))
    x0 = (batch.x_t - (1 - batch.alpha_bar).view(-1, 1, 1, 1, 1).sqrt() * batch.noise) / batch.alpha_bar.view(
        -1, 1, 1, 1, 1
    ).sqrt()
    clips = make(plan).cache.values[:, ::2].float()
    torch.testing.assert_close(x0, clips[batch.rows], rtol=1e-2, atol=1e-2)
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    torch.testing.assert_close(batch.alpha_bar, (1 - betas).cumprod(0)[batch.t].float())


@pytest.mark.slow
def test_training_learns_and_leaves_the_base_untouched(make, plan, base):
    """With all losses. The denoising loss of fixed samples is lower after the training."""
    plan = replace(plan, data=replace(plan.data, drop=0.0), train=replace(plan.train, steps=15, lr_decay_share=0.1))
    task, frozen = make(plan, nonzero=False), weights_hash(base.unet)

    def score():
        with torch.no_grad():
            return sum(task.terms([2 * i, 2 * i + 1])[0]["dsm"].item() for i in range(8))

    before = score()
    task.after_step(False)
    fit(task, plan.train)
    assert score() < before
    assert weights_hash(base.unet) == frozen == base.hash
    assert int(task.queue.filled) == 8


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_not_stopped(make, plan, tmp_path):
    """Including queue, projection head and average."""

    class Stop(Exception):
        pass

    def stop(_average):
        raise Stop

    whole = make(plan)
    average = fit(whole, plan.train)
    cut = replace(plan, train=replace(plan.train, out=tmp_path / "cut"))
    with pytest.raises(Stop):
        fit(make(cut), cut.train, on_save=stop)
    resumed = make(cut, nonzero=False)
    again = fit(resumed, cut.train)
    assert all(torch.equal(average[n], again[n]) for n in average)
    assert any(n.startswith("head.") for n in average)
    assert torch.equal(whole.queue.rows, resumed.queue.rows)
    assert torch.equal(whole.queue.owners, resumed.queue.owners)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["base", "data", "loss.trs"])
def test_a_changed_base_data_or_setting_is_named_on_resume(make, plan, change):
    fit(make(plan), plan.train)
    if change == "loss.trs":
        task = make(replace(plan, loss=replace(plan.loss, trs=0.7)))
    else:
        task = make(plan)
        if change == "base":
            task.base_hash = "another"
        else:
            task.cache = replace(task.cache, digest="another")
    with pytest.raises(ChangedRun, match=f"{change} was .* is now (another|0.7)"):
        fit(task, plan.train)


@pytest.mark.slow
def test_the_file_is_the_averaged_model_without_the_projection_head(make, plan, base):
    """G6, in the diffusers host: the exported file gives the same result as the trainer's own forward."""
    task = make(plan)
    average = fit(task, plan.train)
    path = plan.train.out / "harivo.safetensors"
    harivo.write(task, average, path)
    file = checkpoint.load(path, expect=HARIVO)
    assert {k.split(".")[0] for k in file.weights} == ALL
    assert file.header["base"] == base.hash
    assert checkpoint.header_json(file.header, "loss")["trs"] == 0.1
    batch = task.draw([0, 1])
    halves = {n: v.half().float() for n, v in average.items()}
    for table in task.harivo.buffers():  # table of positions: constant, and rounded in the file like all weights
        table.copy_(table.half())
    with averaged(task, halves), torch.no_grad():
        expected = task.predict(batch.x_t, batch.t, batch.context)
    task.handle.remove()
    model = HarivoModel(HarivoConfig.from_dict(file.config))
    model.load_state_dict({k: v.float() for k, v in file.weights.items()})
    handle = attach(base.unet, model)
    handle.frames = FRAMES
    with torch.no_grad():
        times, context = batch.t.repeat_interleave(FRAMES), batch.context.repeat_interleave(FRAMES, 0)
        eps = base.unet(batch.x_t.flatten(0, 1), times, context).sample
    handle.remove()
    assert torch.equal(eps, expected.flatten(0, 1))


def test_a_run_can_start_from_the_temporal_layers_of_a_file(make, plan, tmp_path):
    first = make(plan)
    path = tmp_path / "harivo.safetensors"
    harivo.write(first, {f"harivo.{n}": p for n, p in first.harivo.named_parameters()}, path)
    second = make(replace(plan, model=replace(plan.model, tokens=0)), nonzero=False)
    harivo.start_from(second.harivo, str(path))
    assert all(
        torch.equal(v, first.harivo.state_dict()[k].half().float()) for k, v in second.harivo.state_dict().items()
    )
    longer = make(replace(plan, model=replace(plan.model, max_frames=16)))
    with pytest.raises(ConfigError, match="does not fit this model"):
        harivo.start_from(longer.harivo, str(path))


@pytest.mark.slow
def test_pictures_while_training_are_those_of_the_average(make, plan, base):
    task = make(plan)
    average = fit(task, plan.train, on_step=Preview(task, base.vae, plan))
    files = sorted((plan.train.out / "samples").iterdir())
    assert [p.name for p in files] == ["step-00000002.png", "step-00000004.png"]
    with averaged(task, average):
        latents = sample(task, list(plan.samples.prompts), steps=2, guidance=7.5)
    save_grid(decoded(base.vae, latents, 3), plan.train.out / "again.png")
    with Image.open(files[-1]) as image, Image.open(plan.train.out / "again.png") as again:
        assert image.size == (3 * 32, 2 * 32)
        assert image.tobytes() == again.tobytes()


def test_the_average_is_lent_and_given_back(make, plan):
    task = make(plan)
    before = {n: p.detach().clone() for n, p in task.named_parameters()}
    with averaged(task, {n: torch.zeros_like(p) for n, p in before.items() if n.startswith("harivo.")}):
        assert not any(p.any() for p in task.harivo.parameters())
    assert all(torch.equal(p, before[n]) for n, p in task.named_parameters())


def test_captions_of_rendered_clips_are_their_wordings():
    cache = Latents(torch.zeros(3, 2, 4, 8, 8), [0.0, 1.0], 5)
    assert len({cache.caption(1, random.Random(i)) for i in range(20)}) > 1
