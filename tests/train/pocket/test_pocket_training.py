"""Each stage of the pocket model on a few samples: its loss falls and its files can be loaded."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stillmotion.evaluation.judges.judge import load_judge, save_judge
from stillmotion.evaluation.judges.video_judge import VideoJudge
from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.diffusers_host.pocket import new_text_encoder, new_unet, new_vae
from stillmotion.model_patches.files import write_tensors
from stillmotion.model_patches.pocket import SCALE, PocketConfig
from stillmotion.training.data import latents, sprites
from stillmotion.training.engine.loop import ChangedRun, fit
from stillmotion.training.plans.run import TrainTable
from stillmotion.training.pocket import motion
from stillmotion.training.pocket.judge import JudgeTask, new_judge
from stillmotion.training.pocket.stages import Stages
from stillmotion.training.pocket.text import TextTask
from stillmotion.training.pocket.unet import UnetTask
from stillmotion.training.pocket.vae import VaeTask, normalise_latents
from stillmotion.training.systems.weighting import loss_weight


def falls(task, tmp_path, steps=12, batch=4):
    before = sum(task(list(range(i, i + batch)))["loss"].item() for i in range(0, 4 * batch, batch))
    fit(task, TrainTable(out=tmp_path / "run", steps=steps, batch=batch, lr=2e-3, warmup=1, lr_decay_share=0.1))
    after = sum(task(list(range(i, i + batch)))["loss"].item() for i in range(0, 4 * batch, batch))
    return after < before


@pytest.mark.slow
def test_the_autoencoder_learns(tmp_path):
    assert falls(VaeTask(), tmp_path, steps=6)


def test_crops_show_the_sprite():
    task = VaeTask(crop=32)
    for k in range(20):
        picture = task.picture(k)
        assert picture.shape == (3, 32, 32)
        assert picture.flatten(1).std(1).max() > 0.02


@torch.no_grad()
def test_normalised_latents_have_unit_spread_and_the_decoder_does_not_notice(small):
    torch.manual_seed(1)
    vae = new_vae(small.config).eval()
    pictures = torch.stack([sprites.render(sprites.clip(0, k), [0.5])[0] for k in range(8)]) * 2 - 1
    z: Any = vae.encode(pictures, return_dict=False)[0]
    before: Any = vae.decode(z.mean, return_dict=False)[0]
    spread = z.std.clone() / z.mean.std((0, 2, 3), keepdim=True)
    normalise_latents(vae, pictures)
    after: Any = vae.encode(pictures, return_dict=False)[0]
    torch.testing.assert_close((after.mean * SCALE).std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close((after.mean * SCALE).mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(vae.decode(after.mean, return_dict=False)[0], before, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(after.std * SCALE, spread, rtol=2e-2, atol=1e-4)


def test_the_text_encoder_learns(vocabulary, tmp_path):
    assert falls(TextTask(vocabulary), tmp_path, batch=8)


def test_compact_rows_are_the_stock_ids(vocabulary):
    text = ["a red star zzz", ""]
    ids, rows = vocabulary.stock(text), vocabulary.rows(text)
    assert ids.shape == rows.shape == (2, 77)
    known = rows < len(vocabulary.ids)
    assert (torch.tensor(vocabulary.ids)[rows[known]] == ids[known]).all()
    assert (~known)[0].any()
    assert known[1].all()


def test_the_judge_learns_and_its_file_is_its_weights(tmp_path):
    task = JudgeTask()
    assert falls(task, tmp_path, batch=8)
    save_judge(task.judge, tmp_path / "judge.safetensors")
    again = load_judge(tmp_path / "judge.safetensors")
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x).mask, task.judge.eval()(x).mask)


def test_an_unseen_sprite_has_no_centre():
    verdict = new_judge()(torch.zeros(1, 3, 64, 64))
    hidden = type(verdict)(verdict.logits, torch.full((1, 1, 32, 32), -9.0))
    assert hidden.centres().isnan().all()
    mask = torch.full((1, 1, 32, 32), -9.0)
    mask[..., 8:12, 20:24] = 9.0
    torch.testing.assert_close(type(verdict)({}, mask).centres(), torch.tensor([[22 / 32, 10 / 32]]), rtol=0, atol=1e-3)


def test_cached_latents_are_those_of_their_clips(small, shards):
    cache = latents.read(shards, small.vae)
    assert cache.values.shape == (5, 4, 4, 16, 16)
    frames = sprites.render(cache.clip(4), cache.times) * 2 - 1
    with torch.no_grad():
        expected = small.vae.encode(frames).latent_dist.mean * SCALE
    torch.testing.assert_close(cache.values[4].float(), expected, rtol=2e-3, atol=2e-3)


def test_latents_of_another_autoencoder_are_refused(small, shards):
    torch.manual_seed(9)
    with pytest.raises(ValueError, match="another autoencoder"):
        latents.read(shards, new_vae(small.config))


def test_a_missing_shard_is_noticed(small, shards, tmp_path):
    (tmp_path / "clips-000003.safetensors").write_bytes((shards / "clips-000003.safetensors").read_bytes())
    with pytest.raises(ValueError, match="gaps"):
        latents.read(tmp_path, small.vae)
    with pytest.raises(FileNotFoundError, match="pocket latents"):
        latents.read(tmp_path / "none", small.vae)


@pytest.mark.slow
def test_the_unet_learns(small, vocabulary, shards, tmp_path):
    text = new_text_encoder(PocketConfig(), len(vocabulary.ids) + 1)
    task = UnetTask(text, vocabulary, latents.read(shards, small.vae))
    assert falls(task, tmp_path, steps=8)


def test_the_weight_of_a_noise_level_is_min_snr_with_a_boost():
    sigma = torch.tensor([0.1, 1.0, 4.0])
    torch.testing.assert_close(loss_weight(sigma, 0.5), torch.tensor([0.05, 1.0, 2.0]))


@pytest.mark.slow
def test_motion_training_learns_and_leaves_the_base_untouched(small, vocabulary, shards, tmp_path):
    config = MotionConfig(
        block_channels=small.config.unet_channels,
        layers_per_block=1,
        mid_block=True,
        heads=4,
        beta_schedule="linear",
        beta_start=0.00085,
        beta_end=0.012,
    )
    task = motion.MotionTask(small, vocabulary, config, latents.read(shards, small.vae), frames=4)
    frozen = {k: v.clone() for k, v in small.unet.state_dict().items()}
    assert falls(task, tmp_path, steps=15, batch=2)
    assert all(torch.equal(v, small.unet.state_dict()[k]) for k, v in frozen.items())
    task.handle.remove()


@pytest.mark.slow
def test_the_commands_write_files_that_load(small, vocabulary, shards, tmp_path, comfyui_dir, monkeypatch):
    """`motion.train` turns a pocket file into a motion file; run again, it resumes and has nothing left to do."""
    base = tmp_path / "pocket.safetensors"
    monkeypatch.setattr(
        motion, "load_pocket", lambda _path: small
    )  # a function of ours, replaced to get a smaller model
    recipe = {
        "model": {"mid_block": True, "heads": 4, "max_frames": 8},
        "train": {"steps": 2, "batch": 1, "lr": 1e-3, "frames": 4},
    }
    tokenizer = comfyui_dir / "comfy" / "sd1_tokenizer"
    for _ in range(2):
        path = motion.train(tmp_path / "out", recipe, tokenizer, pocket=base, shards=shards)
        file = checkpoint.load(path)
        assert file.header["step"] == "2"
        assert file.config["block_channels"] == [32, 64]
    recipe["train"] |= {"boost": 0.0}
    with pytest.raises(ChangedRun, match=r"train\.boost was 1\.0, is now 0\.0"):
        motion.train(tmp_path / "out", recipe, tokenizer, pocket=base, shards=shards)
    motion.train(tmp_path / "out", recipe, tokenizer, pocket=base, shards=shards, allow=["train.boost"])


@pytest.mark.slow
def test_a_pocket_folder_can_be_trained_further(vocabulary, tmp_path, comfyui_dir):
    """After export and adopt, every network equals the exported one, rounded to half precision once."""
    tokenizer = comfyui_dir / "comfy" / "sd1_tokenizer"
    torch.manual_seed(3)
    config, first = PocketConfig(), Stages(tmp_path / "a", {"unet": {"steps": 0}}, tokenizer)
    networks = {
        "vae": new_vae(config),
        "text": new_text_encoder(config, len(vocabulary.ids) + 1),
        "judge": new_judge(),
        "video_judge": VideoJudge(),
        "unet": new_unet(config),
    }
    for stage, network in networks.items():
        first.done(stage).parent.mkdir(parents=True)
        rounded = {k: v.half().float().contiguous() for k, v in network.state_dict().items()}
        write_tensors(rounded, first.done(stage))
    first.export()
    again = Stages(tmp_path / "b", {}, tokenizer)
    again.adopt(tmp_path / "a" / "pocket")
    for stage in ("vae", "text", "judge", "video_judge"):
        before, after = load_file(first.done(stage)), load_file(again.done(stage))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)


def test_still_clips_are_sampled_more_often_on_request(small, vocabulary, shards):
    config = MotionConfig(block_channels=small.config.unet_channels, layers_per_block=1, heads=4)
    data = latents.read(shards, small.vae)
    still = [i for i in range(len(data.values)) if data.clip(i).motion == "still"]
    task = motion.MotionTask(small, vocabulary, config, data, frames=4, still_weight=3)
    task.handle.remove()
    taken = [task.clip_of(k) for k in range(len(task.order))]
    assert {i: taken.count(i) for i in set(taken)} == {i: 3 if i in still else 1 for i in range(len(data.values))}
