"""VidRD's training on a tiny random base: trained and frozen parts, exact resuming."""

from dataclasses import replace

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.diffusers_host.pocket import new_text_encoder, new_unet, new_vae
from stillmotion.model_patches.diffusers_host.vidrd import attach
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.model_patches.systems import VIDRD
from stillmotion.model_patches.vidrd.config import VidrdConfig
from stillmotion.model_patches.vidrd.model import VidrdModel, is_temporal
from stillmotion.training import registry
from stillmotion.training.data.latents import Latents, weights_hash
from stillmotion.training.engine.loop import fit
from stillmotion.training.plans.common import BaseTable, DataTable, EpsLossTable, SamplesTable
from stillmotion.training.plans.errors import ConfigError
from stillmotion.training.plans.run import TrainTable
from stillmotion.training.plans.vidrd import VidrdModelTable, VidrdPlan
from stillmotion.training.systems import vidrd
from stillmotion.training.systems.bases import Base, clip_ids
from stillmotion.training.systems.preview import averaged
from stillmotion.training.systems.vidrd import VidrdTask, vidrd_config

SMALL = PocketConfig(unet_channels=(32, 64), unet_attention=(False, True), vae_channels=(32, 32, 32), context=32)
FRAMES = 4


@pytest.fixture
def base(comfyui_dir):
    torch.manual_seed(0)
    unet, vae, text = new_unet(SMALL), new_vae(SMALL), new_text_encoder(SMALL)
    for module in (unet, vae, text):
        module.eval().requires_grad_(False)
    return Base(unet, vae, text, SMALL, clip_ids(comfyui_dir / "comfy" / "sd1_tokenizer"), weights_hash(unet))


@pytest.fixture
def plan(tmp_path):
    return VidrdPlan(
        train=TrainTable(out=tmp_path / "run", steps=4, batch=2, lr=2e-3, warmup=1, save_every=2),
        base=BaseTable(),
        data=DataTable(frames=FRAMES),
        model=VidrdModelTable(conv_layers=2, dropout=0.3),
        loss=EpsLossTable(),
        samples=SamplesTable(every=0),
    )


def task_of(base, plan):
    torch.manual_seed(1)
    values, times = torch.randn(6, 8, 4, 8, 8, generator=torch.Generator().manual_seed(3)), [i / 7 for i in range(8)]
    cache = Latents(values.half(), times, 0, [f"clip {i}" for i in range(6)])
    return VidrdTask(base, vidrd_config(plan.model, base, FRAMES), plan, cache)


def fresh(base):
    """A second base with the same weights: a training changes the first one."""
    unet = new_unet(SMALL)
    unet.load_state_dict(base.unet.state_dict())
    return replace(base, unet=unet.eval().requires_grad_(False))


def test_the_trained_set_is_the_temporal_layers_and_the_spatial_transformers(base, plan):
    task = task_of(base, plan)
    trained = {n for n, p in task.named_parameters() if p.requires_grad}
    expected = set(VidrdModel(task.config).state_dict())
    assert {n.removeprefix("vidrd.").removeprefix("unet.") for n in trained} == expected
    task([0, 1])["loss"].backward()
    with_gradient = {n for n, p in task.named_parameters() if p.grad is not None}
    assert with_gradient == trained
    alone = task_of(fresh(base), replace(plan, model=replace(plan.model, spatial=False)))
    assert all(n.startswith("vidrd.") for n, p in alone.named_parameters() if p.requires_grad)


@pytest.mark.slow
def test_training_learns_and_leaves_the_rest_untouched(base, plan):
    plan = replace(plan, data=replace(plan.data, drop=0.0), train=replace(plan.train, steps=12, lr_decay_share=0.1))
    task = task_of(base, plan)
    frozen, before = task.frozen_hash(), {n: p.detach().clone() for n, p in task.tuned()}

    def score():
        with torch.no_grad():
            return sum(task([2 * i, 2 * i + 1])["eps"].item() for i in range(6))

    first = score()
    fit(task, plan.train)
    assert score() < first
    assert task.frozen_hash() == frozen
    assert any(not torch.equal(p, before[n]) for n, p in task.tuned())


def test_dropout_belongs_to_the_sample_and_is_off_without_gradients(base, plan):
    task = task_of(base, plan)
    with torch.no_grad():
        for parameter in task.vidrd.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
    together = task([5, 3])["eps"]
    alone = torch.stack([task([k])["eps"] for k in (5, 3)]).mean()
    torch.testing.assert_close(together, alone)
    with torch.no_grad():
        calm = task([5, 3])["eps"]
        torch.manual_seed(9)
        assert torch.equal(task([5, 3])["eps"], calm)
    assert not torch.allclose(together, calm, rtol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_not_stopped(base, plan, tmp_path):
    class Stop(Exception):
        pass

    def stop(_average):
        raise Stop

    bases = [base, fresh(base), fresh(base)]
    average = fit(task_of(bases[0], plan), plan.train)
    cut = replace(plan, train=replace(plan.train, out=tmp_path / "cut"))
    with pytest.raises(Stop):
        fit(task_of(bases[1], cut), cut.train, on_save=stop)
    again = fit(task_of(bases[2], cut), cut.train)
    assert average.keys() == again.keys()
    assert all(torch.equal(average[n], again[n]) for n in average)
    assert any(n.startswith("unet.") for n in average)


@pytest.mark.slow
def test_the_file_is_the_averaged_model(base, plan):
    """The exported file on the untrained base gives the same result as the trainer's own forward."""
    other = fresh(base)
    task = task_of(base, plan)
    average = fit(task, plan.train)
    path = plan.train.out / "vidrd.safetensors"
    vidrd.write(task, average, path)
    file = checkpoint.load(path, expect=VIDRD)
    assert any(not is_temporal(k) for k in file.weights)
    assert file.header["base"] == base.hash
    clips, _ = task.noised([0, 1])
    with averaged(task, {n: v.half().float() for n, v in average.items()}), torch.no_grad():
        expected = task.predict(clips.x_t, clips.t, clips.context)
    model = VidrdModel(VidrdConfig.from_dict(file.config)).eval()
    model.load_state_dict({k: v.float() for k, v in file.weights.items()})
    handle = attach(other.unet, model)
    with torch.no_grad():
        assert torch.equal(handle.predict(clips.x_t, clips.t, clips.context), expected)
    handle.remove()
    assert weights_hash(other.unet) == base.hash


def test_a_run_can_start_from_a_file(base, plan, tmp_path):
    other = fresh(base)
    first = task_of(base, plan)
    path = tmp_path / "vidrd.safetensors"
    weights = {n: p for n, p in first.named_parameters() if p.requires_grad}
    vidrd.write(first, {n: p + 0.5 for n, p in weights.items()}, path)
    second = task_of(other, plan)
    vidrd.start_from(second, str(path))
    for name, parameter in second.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, (weights[name] + 0.5).half().float())
    deeper = task_of(fresh(base), replace(plan, model=replace(plan.model, conv_layers=3)))
    with pytest.raises(ConfigError, match="does not fit this model"):
        vidrd.start_from(deeper, str(path))


def test_the_bundled_configs_are_read():
    pocket, full = (registry.read(registry.find(name)) for name in ("vidrd_pocket", "vidrd_sd21"))
    assert (pocket.system, full.system) == ("vidrd", "vidrd")
    assert (full.data.frames, full.base.kind, full.samples.guidance, full.samples.steps) == (8, "sd21", 10.0, 50)
    assert (full.model.conv_layers, full.model.dropout, full.model.embedding) == (4, 0.1, "stream")
    assert (full.model.group_norm, full.model.spatial) == ("per_clip", True)
    assert (pocket.model.spatial, pocket.model.embedding) == (False, "branch")


def test_the_config_names_its_system_and_has_its_tables(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('system = "vidrd"\n[train]\nsteps = 1\nbatch = 1\n[model]\ntokens = 3\n')
    with pytest.raises(ConfigError, match=r"model\.tokens is unknown; the keys are conv_layers"):
        registry.read(path)
    path.write_text('system = "vidrid"\n[train]\nsteps = 1\nbatch = 1\n')
    with pytest.raises(ConfigError, match="system is 'vidrid'; use one of harivo, vidrd, vidrd_decoder"):
        registry.read(path)
