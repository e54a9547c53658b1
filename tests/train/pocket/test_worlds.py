"""Both worlds meet the requirements of the trainer, and each file names its world."""

import hashlib
import json
import random

import pytest
import torch
from safetensors import safe_open

from stillmotion.evaluation.judges.judge import LABELS, load_judge, save_judge
from stillmotion.evaluation.judges.video_judge import FRAMES, VideoJudge, load_video_judge, save_video_judge
from stillmotion.model_patches.pocket import SCALE
from stillmotion.training.data import latents
from stillmotion.training.data.sprites import frame_times
from stillmotion.training.data.worlds import SCENES, SPRITES, WORLDS, named, world_of
from stillmotion.training.engine.loop import ChangedRun, fit
from stillmotion.training.metrics import judging
from stillmotion.training.plans.errors import ConfigError
from stillmotion.training.plans.run import TrainTable
from stillmotion.training.pocket import unet
from stillmotion.training.pocket.judge import IGNORED, JudgeTask, new_judge
from stillmotion.training.pocket.stages import Stages
from stillmotion.training.pocket.text import TextTask, Vocabulary
from stillmotion.training.pocket.vae import VaeTask
from stillmotion.training.pocket.video_judge import DISORDERED, ORDERED, VideoJudgeTask, labels_of, sizes_of

both = pytest.mark.parametrize("world", [SPRITES, SCENES], ids=list(WORLDS))


@pytest.fixture(scope="module")
def scene_shards(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    options = {"times": frame_times(8), "seed": 0, "scale": SCALE, "world": SCENES}
    latents.encode(small.vae, folder / "clips-000000.safetensors", first=0, count=12, **options)
    return folder


@both
def test_a_world_has_all_required_functions(world):
    clip = world.clip(3, 5)
    assert clip == world.clip(3, 5)
    values = world.attributes(clip)
    assert {*LABELS, "motion", "speed", "size"} <= values.keys() == world.CLASSES.keys()
    assert all(value in world.CLASSES[name] for name, value in values.items())
    frames, cover = world.render(clip, [0.0, 0.5]), world.mask(clip, [0.0, 0.5])
    assert frames.shape == (2, 3, 64, 64)
    assert cover.shape == (2, 1, 64, 64)
    assert world.render(clip, [0.0], size=128).shape == (1, 3, 128, 128)
    assert len(world.visible(clip, [0.0, 0.5])) == 2
    assert all(0 <= share <= 1 for share in world.visible(clip, [0.0, 0.5]))
    assert [c.motion for c in world.held_out(2, motions=("left", "still"))] == ["left", "still"]


@both
def test_a_style_is_seen_around_the_subject_and_another_is_refused(world):
    clip = next(c for k in range(99) if (c := world.clip(0, k)).motion == "still")
    plain, glowing = (world.render(clip, [0.5], style=style) for style in ("plain", "glow"))
    near = (plain - glowing).abs().sum(1) > 0.05
    assert 20 < near.sum() < 64 * 64 * 0.8
    with pytest.raises(ValueError, match="sepia"):
        world.render(clip, [0.5], style="sepia")


@both
def test_a_wording_mentions_attributes_of_its_clip(world):
    for k in range(50):
        clip = world.clip(1, k)
        text, mentioned = world.wording(clip, random.Random(k))
        assert text == world.caption(clip, random.Random(k))
        values = world.attributes(clip)
        assert all(values[name] == value for name, value in mentioned.items() if name != "second")
        assert mentioned["second"] in ("none", *world.CLASSES["colour"])
    assert world.wording(world.clip(1, 0))[1].keys() >= {"colour", "shape", "background"}


@both
def test_phrases_recognise_the_attributes_of_a_full_caption(world):
    for k in range(30):
        clip = world.held_out(1, first=k)[0]
        text, values = f" {world.caption(clip).replace(',', ' ')} ", world.attributes(clip)
        for name, phrases in world.phrases().items():
            classes = {world.CLASSES[name][i] for phrase, i in phrases if f" {phrase} " in text}
            assert values[name] in classes, (text, name)


def test_an_unknown_world_is_named():
    assert world_of({}) is SPRITES
    assert world_of({"data": {"world": "scenes"}}) is SCENES
    with pytest.raises(ConfigError, match=r"'films'; use one of sprites, scenes"):
        named("films")


@pytest.mark.slow
@pytest.mark.parametrize("task", [VaeTask, JudgeTask, VideoJudgeTask])
def test_the_stages_learn_the_scenes(task, tmp_path):
    torch.manual_seed(0)
    learner, numbers = task(world=SCENES), list(range(8))
    before = learner(numbers)["loss"].item()
    fit(learner, TrainTable(out=tmp_path / "run", steps=6, batch=4, lr=2e-3, warmup=1, lr_decay_share=0.1))
    assert learner(numbers)["loss"].item() < before


def test_the_text_encoder_learns_the_scenes(comfyui_dir, tmp_path):
    vocabulary = Vocabulary(comfyui_dir / "comfy" / "sd1_tokenizer", SCENES)
    rows = vocabulary.rows([SCENES.caption(SCENES.clip(0, k), random.Random(k)) for k in range(50)])
    assert rows.max() < len(vocabulary.ids)
    learner, numbers = TextTask(vocabulary, world=SCENES), list(range(32))
    before = learner(numbers)["loss"].item()
    fit(learner, TrainTable(out=tmp_path / "run", steps=8, batch=8, lr=2e-3, warmup=1, lr_decay_share=0.1))
    assert learner(numbers)["loss"].item() < before


def test_a_run_of_another_world_is_refused(tmp_path):
    run = TrainTable(out=tmp_path / "run", steps=1, batch=2)
    fit(VaeTask(), run)
    with pytest.raises(ChangedRun, match=r"data\.world was sprites, is now scenes"):
        fit(VaeTask(world=SCENES), run)


@pytest.mark.slow
def test_a_state_from_before_the_worlds_is_one_of_the_sprites(tmp_path):
    run = TrainTable(out=tmp_path / "run", steps=1, batch=2)
    fit(VaeTask(), run)
    (record,) = (tmp_path / "run" / "state").glob("*/*.json")
    content = json.loads(record.read_text(encoding="utf-8"))
    for name in ("data.world", "vae.crop", "vae.anywhere"):
        del content["identity"][name]
    record.write_text(json.dumps(content), encoding="utf-8")
    sums = json.loads((record.parent / "COMPLETE").read_text(encoding="utf-8"))
    sums[record.name] = hashlib.sha256(record.read_bytes()).hexdigest()
    (record.parent / "COMPLETE").write_text(json.dumps(sums), encoding="utf-8")
    fit(VaeTask(), TrainTable(out=tmp_path / "run", steps=2, batch=2))


def test_judges_say_which_world_they_know(tmp_path, root):
    save_judge(new_judge(SCENES), tmp_path / "judge.safetensors")
    judge = load_judge(tmp_path / "judge.safetensors")
    assert judge.world == "scenes"
    assert {name: v.shape[1] for name, v in judge(torch.zeros(1, 3, 64, 64)).logits.items()} == {
        name: len(SCENES.CLASSES[name]) for name in LABELS
    }
    save_video_judge(VideoJudge(sizes_of(SCENES), "scenes"), tmp_path / "video.safetensors", {})
    video_judge, _ = load_video_judge(tmp_path / "video.safetensors")
    assert video_judge.world == "scenes"
    assert video_judge(torch.zeros(1, FRAMES, 3, 64, 64))["camera"].shape == (1, 2)
    assert load_judge(root / "pocket" / "judge.safetensors").world == "sprites"
    with safe_open(tmp_path / "judge.safetensors", "pt") as file:
        assert file.metadata()["world"] == "scenes"


def test_files_of_another_world_are_not_adopted(tmp_path, root, comfyui_dir):
    stages = Stages(tmp_path, {"data": {"world": "scenes"}}, comfyui_dir / "comfy" / "sd1_tokenizer")
    with pytest.raises(ConfigError, match=r"are of the world .sprites., but data\.world is .scenes."):
        stages.adopt(root / "pocket")


def test_of_a_subject_that_has_left_the_picture_only_the_ground_is_asked():
    task = JudgeTask(world=SCENES)
    crossing = next(c for k in range(999) if (c := SCENES.clip(0, k)).motion == "right" and c.camera == "resting")
    times = [i / 40 for i in range(200)]
    shares = SCENES.visible(crossing, times)
    outside, inside = times[shares.index(min(shares))], times[shares.index(max(shares))]
    assert task._labels(crossing, outside)[:2] == (IGNORED, IGNORED)
    assert IGNORED not in task._labels(crossing, inside)
    cover = SCENES.mask(crossing, [outside, inside]).sum((1, 2, 3))
    assert cover[0] < 0.5 * cover[1]


def test_the_video_judge_has_labels_for_what_a_scene_shows():
    clips = [SCENES.clip(0, k) for k in range(300)]
    moving = next(c for c in clips if c.motion == "right")
    near = next(c for c in clips if c.motion == "nearer")
    labels = labels_of(moving, order=ORDERED, world=SCENES)
    assert labels.keys() == sizes_of(SCENES).keys()
    assert IGNORED not in labels.values()
    hidden = {n for n, v in labels_of(moving, order=DISORDERED, world=SCENES).items() if v == IGNORED}
    assert hidden == {"motion", "speed", "camera"}
    back = labels_of(moving, order=ORDERED, backwards=True, world=SCENES)
    assert SCENES.CLASSES["motion"][back["motion"]] == "left"
    assert labels_of(near, order=ORDERED, backwards=True, world=SCENES)["motion"] == IGNORED


@pytest.mark.slow
def test_latents_remember_their_world(small, scene_shards):
    cache = latents.read(scene_shards, small.vae)
    assert cache.world is SCENES
    frames = SCENES.render(cache.clip(7), cache.times) * 2 - 1
    with torch.no_grad():
        expected = small.vae.encode(frames).latent_dist.mean * SCALE
    torch.testing.assert_close(cache.values[7].float(), expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(cache.image(7, 64), (frames[0] + 1) / 2)
    assert cache.caption(7, random.Random(1)) == SCENES.caption(cache.clip(7), random.Random(1))


def test_the_unet_is_mostly_trained_on_frames_with_the_subject(small, scene_shards):
    cache = latents.read(scene_shards, small.vae)
    hidden = {(i, f) for i in range(12) for f in range(8) if f not in cache.frames_with_subject(i)}
    places = [unet.place(cache, 0, k) for k in range(600)]
    share = sum(place in hidden for place in places) / len(places)
    assert hidden
    assert 0 < share < 0.5 * len(hidden) / (12 * 8)
    x0, *_ = unet.noised_frames(cache, unet.tables(), 0, [5])
    clip, frame = unet.place(cache, 0, 5)
    assert torch.equal(x0[0], cache.values[clip][frame].float())


def test_scores_ask_the_judges_world():
    judge = new_judge(SCENES).eval()
    prompts = SCENES.held_out(3)
    sample = judging.sample(judging.rendered(prompts, 2, SCENES), prompts, judge)
    assert [w.motion for w in sample.prompts] == [c.motion for c in prompts]
    assert [SCENES.CLASSES["background"][w.background] for w in sample.prompts] == [c.ground for c in prompts]
