"""The sprite data set: images show what their captions say, and held-out combinations are never trained on."""

import random

import pytest
import torch

from stillmotion.evaluation.scores.clips import displacement
from stillmotion.training.data import sprites

CLIPS = range(300)


def centres(mask):  # (f, 1, h, w) -> (f, 2)
    v = (torch.arange(mask.shape[-1]) + 0.5) / mask.shape[-1]
    weight = mask.sum((1, 2, 3))
    return torch.stack([(mask.sum((1, 2)) * v).sum(1) / weight, (mask.sum((1, 3)) * v).sum(1) / weight], 1)


def test_a_sample_is_a_pure_function_of_seed_and_number():
    again = [sprites.clip(5, k) for k in reversed(CLIPS)][::-1]
    assert again == [sprites.clip(5, k) for k in CLIPS]
    assert sprites.clip(6, 0) != sprites.clip(5, 0)


def test_no_training_clip_has_a_held_out_combination():
    assert not any(sprites.clip(0, k).held_out for k in range(3000))
    assert all(sprites.clip(0, k, held_out=True).held_out for k in CLIPS)


def test_there_are_more_than_two_thousand_captions():
    assert len({sprites.caption(sprites.clip(0, k)) for k in range(4000)}) > 2000


def test_about_a_tenth_of_the_combinations_is_held_out():
    names = [
        f"{c}/{s}/{b}/{m}"
        for c in sprites.COLOURS
        for s in sprites.SHAPES
        for b in sprites.BACKGROUNDS
        for m in sprites.MOTIONS
    ]
    share = sum(map(sprites.is_held_out, names)) / len(names)
    assert 0.07 < share < 0.14


@pytest.mark.parametrize("k", CLIPS[::10])
def test_the_sprite_goes_where_its_caption_says(k):
    clip = sprites.clip(1, k, second=False)
    x, y = displacement(centres(sprites.mask(clip, sprites.frame_times(16))))
    if clip.motion in sprites.DIRECTIONS:
        dx, dy = sprites.DIRECTIONS[clip.motion]
        travel = sprites.TRAVEL[clip.speed]
        assert (x, y) == pytest.approx((dx * travel, dy * travel), abs=0.02)
    if clip.motion == "still":
        assert (x, y) == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.parametrize("k", CLIPS[::10])
def test_the_whole_sprite_stays_in_the_picture(k):
    clip = sprites.clip(2, k)
    areas = sprites.mask(clip, sprites.frame_times(16)).sum((1, 2, 3))
    assert areas.min() > 0.93 * areas.max()


def test_motion_shows_in_a_single_frame_only_with_the_cue():
    moving = next(c for c in (sprites.clip(3, k) for k in CLIPS) if c.motion == "right" and c.speed == "fast")
    with_cue, without = sprites.render(moving, [1.0]), sprites.render(moving, [1.0], cue=False)
    trail = (with_cue - without).abs().sum((0, 1, 2))  # by column
    centre = int(sprites.position(moving, 1.0)[0] * 64)
    assert trail[:centre].sum() > 1
    assert trail[centre + 1 :].sum() == 0
    still = next(c for c in (sprites.clip(3, k) for k in CLIPS) if c.motion == "still")
    assert torch.equal(sprites.render(still, [0.5]), sprites.render(still, [0.5], cue=False))


def test_every_word_of_every_wording_is_in_the_vocabulary():
    known = set(sprites.vocabulary())
    for k in CLIPS:
        assert set(sprites.caption(sprites.clip(4, k), random.Random(k)).split()) <= known


def test_an_unknown_shape_is_named():
    with pytest.raises(ValueError, match="blob"):
        sprites.signed_distance("blob", torch.zeros(1), torch.zeros(1))
