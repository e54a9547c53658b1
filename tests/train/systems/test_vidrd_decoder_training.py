"""The training of the temporal decoder: only the Temp-Convs are trained, the gradients of each term, exact resuming."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from stillmotion.evaluation.metrics.decoding import flicker, psnr
from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.diffusers_host.pocket import new_vae
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.model_patches.systems import VIDRD_DECODER
from stillmotion.model_patches.vidrd.config import DecoderConfig
from stillmotion.training import registry
from stillmotion.training.data import pictures
from stillmotion.training.data.pictures import SpriteClips
from stillmotion.training.engine.loop import fit
from stillmotion.training.plans.errors import ConfigError
from stillmotion.training.plans.run import TrainTable
from stillmotion.training.plans.vidrd_decoder import DecoderDataTable, DecoderLossTable, DecoderModelTable, DecoderPlan
from stillmotion.training.systems import vidrd_decoder
from stillmotion.training.systems.vidrd_decoder import DecoderTask, measure

SMALL = PocketConfig(vae_channels=(32, 32, 32))


@pytest.fixture
def plan(tmp_path):
    return DecoderPlan(
        train=TrainTable(out=tmp_path / "run", steps=4, batch=2, lr=1e-3, warmup=1, save_every=2),
        data=DecoderDataTable(frames=3, size=32, clips=5),
        model=DecoderModelTable(dropout=0.2),
        loss=DecoderLossTable(disc_width=8, disc_layers=1, disc_start=2),
    )


def task_of(plan, *, nonzero=False):
    torch.manual_seed(0)
    vae = new_vae(SMALL).eval().requires_grad_(False)
    sizes = DecoderConfig(block_channels=SMALL.vae_channels, layers_per_block=1, dropout=plan.model.dropout, frames=3)
    task = DecoderTask(vae, sizes, plan, pictures.of(plan.data))
    if nonzero:
        with torch.no_grad():
            for parameter in task.temporal.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return task


def test_only_the_temporal_layers_and_the_judge_learn(plan):
    task = task_of(plan, nonzero=True)
    assert {n.split(".")[0] for n, p in task.named_parameters() if p.requires_grad} == {"temporal", "judge"}
    assert task.judge is not None
    task([4, 5])["loss"].backward()  # step 2: the discriminator has started
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.temporal.parameters())
    assert all(p.grad is not None for p in task.judge.parameters())
    assert all(p.grad is None for p in task.vae.parameters())


def test_before_its_start_the_discriminator_changes_nothing(plan):
    task = task_of(plan, nonzero=True)
    out = task([1])
    torch.testing.assert_close(out["loss"].detach(), out["rec"])
    out["loss"].backward()
    assert task.judge is not None
    assert all(p.grad is not None and not p.grad.any() for p in task.judge.parameters())
    later = task([4])
    expected = later["rec"] + 0.5 * later["disc_weight"] * later["disc"] + later["judge"]
    torch.testing.assert_close(later["loss"].detach(), expected)


def test_without_a_discriminator_the_loss_is_the_reconstruction(plan):
    task = task_of(replace(plan, loss=replace(plan.loss, disc=0.0)))
    assert task.judge is None
    out = task([4])
    assert out["loss"] == out["rec"]


def test_flicker_counts_as_much_as_the_config_says(plan):
    task = task_of(replace(plan, loss=replace(plan.loss, disc=0.0, flicker=2.0)), nonzero=True)
    out = task([4])
    torch.testing.assert_close(out["loss"].detach(), out["rec"] + 2 * out["flicker"])
    (g,) = torch.autograd.grad(flicker(y := torch.zeros(3, 3, 4, 4).requires_grad_(), torch.rand(3, 3, 4, 4)), y)
    assert g.any()


def test_a_change_in_the_original_is_not_flicker():
    x = torch.rand(5, 3, 4, 4) - 0.5
    assert flicker(x + 0.25, x) < 1e-6  # wrong, but constant over time
    other = x.clone()
    other[2] += 0.25
    assert flicker(other, x) == pytest.approx(0.125)  # two of four changes differ by 0.25


def test_a_sample_is_a_pure_function_of_its_number(plan):
    task = task_of(plan, nonzero=True)
    together = task([5, 3])
    for name in ("loss", "rec", "disc_weight"):
        alone = torch.stack([task([k])[name].detach() for k in (5, 3)]).mean()
        torch.testing.assert_close(together[name].detach(), alone)


@pytest.mark.slow
def test_a_fresh_decoder_is_the_autoencoder_and_training_brings_it_nearer(plan):
    plan = replace(
        plan, loss=replace(plan.loss, disc=0.0), train=replace(plan.train, steps=15, lr=3e-3, lr_decay_share=0.1)
    )
    task = task_of(plan)
    x = task.clips.frames(0)
    with torch.no_grad():
        assert torch.equal(task.reconstruct(x), task.reconstruct(x, plain=True))
    before = measure(task, task.clips)
    assert before["psnr"] == before["psnr_plain"]
    fit(task, plan.train)
    after = measure(task, task.clips)
    assert after["psnr_plain"] == before["psnr_plain"]
    assert after["psnr"] > before["psnr"]


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_not_stopped(plan, tmp_path):
    class Stop(Exception):
        pass

    def stop(_average):
        raise Stop

    average = fit(task_of(plan), plan.train)
    cut = replace(plan, train=replace(plan.train, out=tmp_path / "cut"))
    with pytest.raises(Stop):
        fit(task_of(cut), cut.train, on_save=stop)
    again = fit(task_of(cut), cut.train)
    assert all(torch.equal(average[n], again[n]) for n in average)
    assert any(n.startswith("judge.") for n in average)


@pytest.mark.slow
def test_the_file_has_the_temporal_layers_alone(plan):
    task = task_of(plan)
    average = fit(task, plan.train)
    path = plan.train.out / "temporal_decoder.safetensors"
    vidrd_decoder.write(task, average, path)
    file = checkpoint.load(path, expect=VIDRD_DECODER)
    assert DecoderConfig.from_dict(file.config) == task.temporal.config
    assert file.header["base"] == task.vae_hash
    assert all(torch.equal(v.float(), average[f"temporal.{k}"].half().float()) for k, v in file.weights.items())


def test_psnr_and_flicker_equal_their_definitions():
    x = torch.zeros(4, 3, 8, 8)
    torch.testing.assert_close(psnr(x + 0.2, x), torch.tensor(20.0))
    assert flicker(x + 0.2, x) == 0  # a constant shift does not flicker
    y = x.clone()
    y[1::2] += 0.2
    torch.testing.assert_close(flicker(y, x), torch.tensor(0.2))


def test_clips_are_drawn_or_read_from_videos(tmp_path, plan):
    assert torch.equal(SpriteClips(3, 4, 16, first=2).frames(0), SpriteClips(5, 4, 16).frames(2))
    with pytest.raises(ConfigError, match="has no video of 3 frames"):
        pictures.of(replace(plan.data, videos=str(tmp_path)))
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width = stream.height = 32
        stream.time_base = Fraction(1, 6)
        for i in range(7):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 30 * i, np.uint8), "rgb24")))
        container.mux(stream.encode())
    videos = pictures.of(replace(plan.data, videos=str(tmp_path), size=16))
    assert len(videos) == 2
    assert videos.frames(1).shape == (3, 3, 16, 16)
    assert videos.frames(0).mean() < videos.frames(1).mean()


def test_lpips_without_weights_is_refused(plan, tmp_path):
    table = replace(plan.loss, perceptual="lpips", lpips=str(tmp_path / "none.pt"))
    with pytest.raises(ConfigError, match=r"loss\.lpips is .*none\.pt'; give a TorchScript file"):
        vidrd_decoder.perceptual(table)


def test_the_bundled_config_is_read():
    plan = registry.read(registry.find("vidrd_decoder_pocket"))
    assert plan.system == "vidrd_decoder"
    assert (plan.loss.rec, plan.loss.disc, plan.model.conv_layers, plan.data.frames) == (1.0, 0.0, 1, 8)
    paper = DecoderLossTable()
    assert (paper.rec, paper.disc, paper.flicker) == (1.0, 0.5, 0.0)
