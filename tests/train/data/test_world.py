"""The world "scenes": pictures show what their captions say, and positions do not depend on the frame number."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from stillmotion.training.data.world import captions, clips, layers, motion, noise, render
from stillmotion.training.data.world.subjects import COLOURS, SUBJECTS

CLIPS = range(200)
TIMES = [i / 15 for i in range(16)]


def first(seed=0, **properties):
    """The first clip whose properties are those."""
    return next(
        c for k in range(9999) if all(getattr(c := clips.clip(seed, k), name) == v for name, v in properties.items())
    )


def centres(mask):  # (f, 1, h, w) -> (f, 2)
    v = (torch.arange(mask.shape[-1]) + 0.5) / mask.shape[-1]
    weight = mask.sum((1, 2, 3))
    return torch.stack([(mask.sum((1, 2)) * v).sum(1) / weight, (mask.sum((1, 3)) * v).sum(1) / weight], 1)


def test_a_sample_is_a_pure_function_of_seed_and_number():
    again = [clips.clip(5, k) for k in reversed(CLIPS)][::-1]
    assert again == [clips.clip(5, k) for k in CLIPS]
    assert clips.clip(6, 0) != clips.clip(5, 0)


@pytest.mark.parametrize("k", range(40))
def test_a_frame_does_not_depend_on_the_other_frames(k):
    clip = clips.clip(11, k)
    together, alone = render.render(clip, TIMES)[7], render.render(clip, [TIMES[7]])[0]
    assert together.shape == (3, 64, 64)
    assert together.isfinite().all()
    assert 0 <= together.min() <= together.max() <= 1
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("ground", clips.GROUNDS)
def test_no_two_grounds_of_a_kind_are_alike_and_each_has_a_texture(ground):
    examples = [c for k in range(400) if (c := clips.clip(3, k)).ground == ground][:4]
    frames = torch.cat([render.render(c, [0.0]) for c in examples])
    for i in range(1, 4):
        assert (frames[i] - frames[0]).abs().mean() > 0.01
    assert frames.diff(dim=-1).abs().mean() > 0.004


def test_pictures_of_another_size_show_the_same():
    clip = clips.clip(0, 3)
    large = torch.nn.functional.avg_pool2d(render.render(clip, [0.3], size=128), 2)
    assert (large - render.render(clip, [0.3])).abs().mean() < 0.03


def test_no_training_clip_has_a_held_out_combination():
    training = {clips.clip(0, k).combination for k in range(3000)}
    held_out = {c.combination for c in clips.held_out(300)}
    validation = {c.combination for c in clips.held_out(300, seed=clips.VALIDATION)}
    assert not training & (held_out | validation)
    assert clips.held_out(4, first=3) == clips.held_out(7)[3:]
    assert clips.held_out(20) != clips.held_out(20, seed=clips.VALIDATION)


def test_prompts_take_their_motions_in_turn():
    assert [c.motion for c in clips.held_out(6, motions=("up", "still", "left"))] == ["up", "still", "left"] * 2


def test_about_a_tenth_of_the_combinations_is_held_out():
    names = [
        f"{colour}/{kind}/{ground}/{way}"
        for colour in COLOURS
        for kind in SUBJECTS
        for ground in clips.HABITATS.get(kind, clips.AIR)
        for way in clips.motions_of(kind, ground)
    ]
    assert 0.08 < sum(map(clips.is_held_out, names)) / len(names) < 0.13


def test_there_are_more_than_twenty_thousand_captions():
    assert len({captions.caption(clips.clip(0, k), random.Random(k)) for k in range(24_000)}) > 20_000


def test_every_word_of_every_wording_is_in_the_vocabulary():
    known = set(captions.vocabulary())
    for k in range(1000):
        assert set(captions.caption(clips.clip(4, k), random.Random(k)).replace(",", " ,").split()) <= known


def test_a_wording_mentions_the_attributes_that_it_reports():
    phrases_of = {
        "colour": captions.COLOUR_WORDS,
        "background": {g: (*p, *(captions.AFLOAT if g == "sea" else ())) for g, p in captions.PLACES.items()},
        "camera": captions.CAMERA_WORDS,
    }
    left_out = dict.fromkeys([*phrases_of, "motion"], 0)
    for k in range(500):
        clip = dataclasses.replace(clips.clip(4, k), second=None)
        text, mentioned = captions.wording(clip, random.Random(k))
        for name, table in phrases_of.items():
            assert any(phrase in text for phrase in table[mentioned[name]]) if name in mentioned else True
            left_out[name] += name not in mentioned
        left_out["motion"] += "motion" not in mentioned
        assert "motion" not in captions.wording(clip, random.Random(k), moves=False)[1]
    assert all(20 < count < 450 for count in left_out.values()), left_out


@pytest.mark.parametrize("speed", motion.SPEEDS)
@pytest.mark.parametrize("way", motion.DIRECTIONS)
def test_a_resting_camera_sees_the_subject_go_where_its_caption_says(way, speed):
    clip = first(motion=way, camera="resting", speed=speed)
    path = dataclasses.replace(clip.actor.path, phase=0.42, half=0.1)
    clip = dataclasses.replace(clip, actor=dataclasses.replace(clip.actor, kind="submarine", path=path))
    times = [0.0, 0.1, 0.2]
    movement = centres(render.mask(clip, times)).diff(dim=0).mean(0)
    expected = torch.tensor(motion.DIRECTIONS[way]) * motion.TRAVEL[speed] * 0.1
    torch.testing.assert_close(movement, expected.float(), rtol=0, atol=0.012)


@pytest.mark.parametrize("way", motion.DIRECTIONS)
def test_a_following_camera_keeps_the_subject_and_moves_the_ground_the_other_way(way):
    clip = first(motion=way, camera="following", ground="clouds" if way in ("up", "down") else "city")
    mask = render.mask(clip, TIMES)
    movement = centres(mask)[-1] - centres(mask)[0]
    assert movement.abs().max() < 0.05
    poses = motion.poses(clip.actor.path, [0.0, 4 / 64 / motion.TRAVEL[clip.speed]])
    nearest = next(layer for layer in render.GROUNDS[clip.ground].layers[::-1] if layer.parallax == 1)
    ground = layers.Ground((dataclasses.replace(nearest, drift=0.0),))
    camera = layers.Camera(poses.scroll, np.array([0.0, 0.1]), clip.actor.path.follows)
    before, after = layers.ground_frames(ground, camera, 128, clip.grain)
    dx, dy = (8 * d for d in motion.DIRECTIONS[way])
    back = np.roll(after, (dy, dx), (1, 2))
    np.testing.assert_allclose(before[:, 8:-8, 8:-8], back[:, 8:-8, 8:-8], rtol=0, atol=0.02)
    assert np.abs(before - after).mean() > 0.01


def test_the_grain_rests_with_the_ground():
    clip = dataclasses.replace(first(ground="city", camera="resting", motion="right"), second=None)
    frames, mask = render.render(clip, TIMES), render.mask(clip, TIMES)
    bare = torch.nn.functional.max_pool2d(mask, 5, 1, 2) == 0
    for i in range(1, 16):
        both = (bare[0] & bare[i]).expand(3, -1, -1)
        assert torch.equal(frames[0][both], frames[i][both])
    assert frames[0, :, 58:].std() > 0.01


@pytest.mark.parametrize("ground", ["sea", "stars", "snow", "reef", "forest"])
def test_some_grounds_move_by_themselves(ground):
    clip = dataclasses.replace(first(ground=ground, motion="still"), second=None)
    one, other = render.render(clip, [0.0, 0.4])
    assert ((one - other).abs().amax(0) > 0.03).float().mean() > 0.01


def test_where_a_subject_is_says_nothing_of_the_frame():
    crossing = [c for k in range(4000) if (c := clips.clip(8, k)).motion in ("right", "left") and c.camera == "resting"]
    places = np.array([motion.poses(c.actor.path, [0.0, 0.5, 1.0, 9.3]).x for c in crossing])
    quantiles = np.quantile(places, [0.1, 0.3, 0.5, 0.7, 0.9], axis=0)  # (5, 4)
    assert np.ptp(quantiles, axis=1).max() < 0.08


def test_a_subject_that_leaves_comes_round_again():
    path = first(motion="right", camera="resting", speed="fast").actor.path
    x = motion.poses(path, [i / 15 for i in range(180)]).x
    turns = np.flatnonzero(np.diff(x) < 0)
    assert len(turns) >= 4
    assert (x[turns] > 1 + 0.9 * path.half - 0.06).all()
    assert (x[turns + 1] < -0.9 * path.half + 0.06).all()


def test_a_subject_at_rest_rests_and_one_that_comes_nearer_grows():
    still = first(motion="still", ground="desert").actor.path
    assert np.ptp(motion.poses(still, TIMES).x) == 0
    near = dataclasses.replace(first(motion="nearer").actor.path, phase=0.1)
    assert (np.diff(motion.poses(near, TIMES[:8]).scale) > 0).all()


def test_wheels_stand_on_the_road():
    for kind in ("car", "train"):
        clip = next(c for k in range(999) if (c := clips.clip(2, k)).actor.kind == kind and c.motion == "still")
        rows = render.mask(clip, [0.0])[0, 0].amax(1).nonzero()
        assert rows.max() / 64 == pytest.approx(clips.FLOOR[clip.ground], abs=0.04)


def test_every_subject_has_a_cycle_and_its_colour():
    for kind in SUBJECTS:
        clip = next(c for k in range(999) if (c := clips.clip(2, k)).actor.kind == kind and c.motion != "still")
        path = dataclasses.replace(clip.actor.path, motion="right", camera="following", place=(0.5, 0.5), half=0.22)
        pictures = {}
        for colour in ("red", "blue"):
            actor = dataclasses.replace(clip.actor, colour=colour, path=path)
            pictures[colour] = render.render(dataclasses.replace(clip, actor=actor, second=None), [0.0, 0.21])
        inside = (
            render.mask(dataclasses.replace(clip, actor=dataclasses.replace(clip.actor, path=path)), [0.0])[0] > 0.9
        )
        red, blue = (pictures[c][0].masked_select(inside).view(3, -1).mean(1) for c in ("red", "blue"))
        assert red[0] > blue[0] + 0.05, kind
        assert blue[2] > red[2] + 0.05, kind
        one, other = (
            render.render(dataclasses.replace(clip, actor=dataclasses.replace(clip.actor, path=still)), [0.0])[0]
            for still in (path, dataclasses.replace(path, phase=path.phase + 0.031))
        )
        assert (one - other).abs()[:, 20:44, 16:48].max() > 0.05, kind


def test_unknown_textures_are_named():
    with pytest.raises(ValueError, match="marble"):
        noise.texture("marble")
