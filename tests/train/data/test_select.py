"""Selection of clips: motion scores of synthetic clips with known motion, CLIP scores by a tiny CLIP, and the lists."""

import json
from typing import Any

import av
import pytest
import torch
import torch.nn.functional as F

from stillmotion.evaluation.networks.loading import sha256
from stillmotion.model_patches.diffusers_host.pocket import new_vae
from stillmotion.model_patches.pocket import SCALE, PocketConfig
from stillmotion.training.__main__ import main
from stillmotion.training.data import latents, selection
from stillmotion.training.data.clip_score import ClipScore, best
from stillmotion.training.data.motion_score import Motion, MotionFilter
from stillmotion.training.data.selection import Row, Selection
from stillmotion.training.data.videos import encode_folder
from stillmotion.training.plans.common import DataTable
from stillmotion.training.plans.errors import ConfigError
from stillmotion.training.tools import select

NEEDS_OPENCV = "the motion score needs OpenCV, the extra `curate`"
SIZE = 160
SMALL = PocketConfig(vae_channels=(32, 32, 32))


@pytest.fixture(scope="module")
def texture():
    coarse = torch.rand(1, 3, 20, 140, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=(SIZE, 7 * SIZE), mode="bicubic").clamp(0, 1)[0]


def panned(texture, pixels, frames=5, start=0):
    """A window that moves over the texture by `pixels` per frame: (f, 3, SIZE, SIZE)."""
    places = [start + round(i * pixels) for i in range(frames)]
    return torch.stack([texture[:, :, x : x + SIZE] for x in places])


def made_clips(texture):
    """A still clip, a moving one, a cut between two still halves, and one that moves too fast; in 0..1."""
    cut = torch.cat([panned(texture, 0, 2), panned(texture, 0, 3, start=500)])
    return {
        "still": panned(texture, 0),
        "moving": panned(texture, 3),
        "cut": cut,
        "fast": panned(texture, 60),
    }


def motion(**options):
    pytest.importorskip("cv2", reason=NEEDS_OPENCV)
    return Motion(MotionFilter(**{"width": SIZE, **options}))


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize("pixels", [1, 3, 6])
def test_the_score_is_pixels_a_frame(texture, method, pixels):
    assert motion(method=method)(panned(texture, pixels))["motion"] == pytest.approx(pixels, rel=0.15)


def test_the_score_belongs_to_a_size_and_not_to_a_stride(texture):
    clip = panned(texture, 2)
    assert motion(width=SIZE // 2)(clip)["motion"] == pytest.approx(1, rel=0.15)
    assert motion(stride=2)(clip)["motion"] == pytest.approx(2, rel=0.15)
    assert motion(stride=9)(clip) == {"motion": 0.0, "residual": 0.0}


def test_still_clips_cuts_and_fast_clips_are_dropped(texture):
    score, limits = motion(), MotionFilter(width=SIZE)
    scores = {name: score(clip) for name, clip in made_clips(texture).items()}
    assert {name for name, clip_scores in scores.items() if limits.keeps(clip_scores)} == {"moving"}
    assert scores["still"] == {"motion": 0.0, "residual": 0.0}
    # the flow alone would keep these two clips: it reports a slow motion that is not there
    assert 1 <= scores["cut"]["motion"] <= 20
    assert 1 <= scores["fast"]["motion"] <= 20
    assert min(scores["cut"]["residual"], scores["fast"]["residual"]) > 2 * limits.residual
    assert scores["moving"]["residual"] < limits.residual / 2
    assert MotionFilter(width=SIZE, residual=0).keeps(scores["cut"])
    assert not MotionFilter(width=SIZE, high=2).keeps(scores["moving"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "raft"}, "--method raft: use one of dis, farneback"),
        ({"low": 3, "high": 2}, "need 0 <= low <= high"),
        ({"stride": 0}, "at least 32 pixels and 1 frame"),
    ],
)
def test_a_meaningless_filter_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MotionFilter(**options)


def test_the_clip_score_is_the_mean_cosine_of_evenly_spread_frames(clip_folder, texture):
    score, clip = ClipScore(clip_folder, frames=3), panned(texture, 40)
    mean = score(clip, "a dog")["clip_score"]
    each = [ClipScore(clip_folder, frames=1)(clip[i : i + 1], "a dog")["clip_score"] for i in (0, 2, 4)]
    assert mean == pytest.approx(sum(each) / 3, abs=1e-5)
    assert mean != pytest.approx(score(clip, "a house on a hill")["clip_score"], abs=1e-4)
    assert mean != pytest.approx(score(1 - clip, "a dog")["clip_score"], abs=1e-4)


def test_clip_sees_what_its_own_image_processor_shows_it(clip_folder, texture):
    """The same as transformers' image processor, up to rounding to 8 bits."""
    from transformers import CLIPImageProcessor

    picture = (panned(texture, 0, 1) * 255).round().byte()
    size: Any = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    expected = CLIPImageProcessor(**size)(list(picture), return_tensors="pt").pixel_values
    pixels = ClipScore(clip_folder).clip.pixels(picture.float() / 255)
    assert (pixels - expected).abs().max() < 0.05
    assert (pixels - expected).abs().mean() < 0.01


def test_a_missing_file_of_clip_is_reported_in_one_sentence(tmp_path, clip_folder):
    with pytest.raises(
        ConfigError, match=r"--clip .*: config\.json is missing; give a folder with a transformers CLIP"
    ) as error:
        ClipScore(tmp_path)
    assert "\n" not in str(error.value)


def test_the_best_clips_are_selected_and_ties_go_to_earlier_ones():
    assert best({0: 0.1, 1: 0.3, 2: 0.3, 3: 0.2}, 2) == {1, 2}
    assert best({0: 0.1, 1: 0.1}, 1) == {0}
    assert best({0: 0.1}, 5) == {0}


class MemoryClips:
    """Clips in memory."""

    def __init__(self, clips):
        self.source, self.clips, self.seen = {"latents": "abc"}, clips, []

    def __call__(self, include):
        for number, (name, frames) in enumerate(self.clips.items()):
            if include(number):
                self.seen.append(name)
                yield select.NumberedClip(number, name, frames, f"a {name} thing")


def test_stages_follow_each_other_and_record_their_settings(tmp_path, texture, clip_folder):
    pytest.importorskip("cv2", reason=NEEDS_OPENCV)
    clips = MemoryClips({**made_clips(texture), "slow": panned(texture, 2), "more": panned(texture, 5)})
    first, second = tmp_path / "moving.jsonl", tmp_path / "kept.jsonl"
    assert select.by_motion(clips, MotionFilter(width=SIZE), first).kept == {1, 4, 5}
    clips.seen.clear()
    result = select.by_clip(clips, clip_folder, second, top=2, after=first)
    assert clips.seen == ["moving", "slow", "more"]
    assert selection.load(second) == result
    scores = {row.clip: row.scores["clip_score"] for row in result.rows if "clip_score" in row.scores}
    assert result.kept == set(sorted(scores, key=lambda clip: -scores[clip])[:2])
    assert [row.clip for row in result.rows] == list(range(6))
    head = json.loads(second.read_text().splitlines()[0])
    assert head["source"] == {"latents": "abc"}
    assert head["stages"][0] == {
        "stage": "motion",
        "low": 1.0,
        "high": 20.0,
        "residual": 5.0,
        "method": "dis",
        "width": SIZE,
        "stride": 1,
    }
    assert head["stages"][1]["sha256"] == sha256(clip_folder / "model.safetensors")
    clips.source = {"latents": "other"}
    with pytest.raises(ConfigError, match="made for latents abc, these are latents other"):
        select.by_clip(clips, clip_folder, second, top=2, after=first)


def write_videos(folder, texture):
    """Three videos of two clips of 4 frames each, at 8 fps: still, moving, and still again."""
    for name, pixels in (("a", 0), ("b", 3), ("c", 0)):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.width = stream.height = SIZE
            stream.bit_rate = 4_000_000
            for frame in panned(texture, pixels, 8):
                picture = av.VideoFrame.from_ndarray((frame.permute(1, 2, 0) * 255).byte().numpy(), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        (folder / f"{name}.txt").write_text(f"caption {name}")


def test_a_folder_of_videos_is_selected_and_only_that_is_encoded(tmp_path, texture, comfyui_dir):
    pytest.importorskip("cv2", reason=NEEDS_OPENCV)
    folder, kept_list = tmp_path / "videos", tmp_path / "kept.jsonl"
    folder.mkdir()
    write_videos(folder, texture)
    arguments = ["select", "motion", "harivo_pocket", "--videos", folder, "--frames", 4]
    arguments += ["--width", SIZE, "--out", kept_list]
    assert main(list(map(str, arguments))) == 0
    assert [row.name for row in selection.load(kept_list).rows if row.kept] == ["b.mp4 0", "b.mp4 1"]
    vae = new_vae(SMALL).eval().requires_grad_(False)
    cut: Any = {"frames": 4, "fps": 8, "size": 32, "scale": SCALE, "selection": kept_list}
    assert encode_folder(vae, folder, tmp_path / "latents", **cut) == 2
    assert latents.read(tmp_path / "latents", vae).captions == ["caption b"] * 2
    with pytest.raises(ConfigError, match=r"made for videos .*, frames 4, fps 8\.0, these are videos"):
        encode_folder(vae, folder, tmp_path / "other", **cut | {"fps": 4})


@pytest.mark.slow
def test_still_rendered_clips_are_not_selected(tmp_path, comfyui_dir):
    """For drawn clips, the motion score is computed on latents that the bundled pocket model decodes."""
    pytest.importorskip("cv2", reason=NEEDS_OPENCV)
    from stillmotion.training.plans.common import BaseTable
    from stillmotion.training.systems import bases

    vae = bases.load(BaseTable(), comfyui_dir / "comfy" / "sd1_tokenizer").vae
    times = [i / 15 for i in range(4)]
    latents.encode(vae, tmp_path / "clips-000000.safetensors", first=0, count=16, times=times, seed=3, scale=SCALE)
    kept_list = tmp_path / "kept.jsonl"
    assert main(["select", "motion", "harivo_pocket", "--latents", str(tmp_path), "--out", str(kept_list)]) == 0
    cache = latents.for_training(DataTable(latents=str(tmp_path), selection=str(kept_list), frames=4), vae)
    whole = latents.read(tmp_path, vae)
    resting = {i for i in range(16) if whole.at_rest(i)}
    assert len(resting) == 3
    assert not resting & set(cache.epoch())
    assert len(cache.epoch()) > 10


def test_the_trainer_uses_the_kept_clips_and_notices_changes(tmp_path):
    torch.manual_seed(0)
    vae = new_vae(SMALL).eval().requires_grad_(False)
    latents.encode(vae, tmp_path / "a.safetensors", first=0, count=4, times=[0.0, 1.0], seed=0, scale=SCALE)
    whole = latents.read(tmp_path, vae)
    kept_list, source = tmp_path / "kept.jsonl", {"latents": whole.digest}
    rows = [Row(i, f"clip {i}", i in (1, 3)) for i in range(4)]
    Selection(source, [{"stage": "motion"}], rows).save(kept_list)
    table = DataTable(latents=str(tmp_path), selection=str(kept_list), frames=2)
    cache = latents.for_training(table, vae)
    assert cache.epoch() == [1, 3]
    assert cache.digest != whole.digest
    assert latents.for_training(DataTable(latents=str(tmp_path), frames=2), vae).digest == whole.digest
    Selection(source, [], [Row(i, "", False) for i in range(4)]).save(kept_list)
    with pytest.raises(ConfigError, match="keeps no clip"):
        latents.for_training(table, vae)
    Selection({"latents": "other"}, [], rows).save(kept_list)
    with pytest.raises(ConfigError, match="made for latents other, these are latents"):
        latents.for_training(table, vae)
    for text, message in (
        ("", "is not a list"),
        ("{}\n{", "is not a list"),
        ('{"format": 3', "is broken"),
        ("[]", "is broken"),
    ):
        kept_list.write_text(text)
        with pytest.raises(ConfigError, match=message):
            latents.for_training(table, vae)
    with pytest.raises(ConfigError, match="there is no list"):
        latents.for_training(DataTable(latents=str(tmp_path), selection="nowhere.jsonl", frames=2), vae)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["motion"], "give one of --latents DIR and --videos DIR"),
        (["clip", "--latents", "x", "--top", "3"], "give --clip FOLDER"),
    ],
)
def test_missing_options_of_the_command_are_named(tmp_path, arguments, message):
    arguments = ["select", arguments[0], "harivo_pocket", *arguments[1:], "--out", str(tmp_path / "kept.jsonl")]
    with pytest.raises(SystemExit, match=message):
        main(arguments)
