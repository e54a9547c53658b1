"""Seams, flicker, drift and mirrored repeats: known videos have known values, on any background."""

import math

import pytest
import torch

from stillmotion.evaluation.drawing.views import continuity_text, draw_continuity
from stillmotion.evaluation.metrics.continuity import HALF_STEP, Meter, look, mirror_similarity, read

N = 4


def ramp(values):
    """Frames with one grey level each."""
    return [torch.full((3, 8, 8), v) for v in values]


def walk(places, size=16, background=None):
    """Frames with one bright column, on an image or on black."""
    frames = []
    for place in places:
        frame = torch.zeros(3, size, size) if background is None else background.clone()
        frame[:, :, place] = 1.0
        frames.append(frame)
    return frames


def test_a_seam_is_the_jump_over_the_usual_change():
    steady = [0.1 * i / N for i in range(N)]
    measures = read(ramp([*steady, *(v + 0.3 for v in steady)]), N)
    (seam,) = measures.seams
    jump, usual = 0.3 - steady[-1], 0.1 / N
    assert seam == pytest.approx((jump + HALF_STEP) / (usual + HALF_STEP), rel=1e-4)


def test_even_motion_and_rest_have_no_seams():
    even = read(ramp([0.02 * i for i in range(3 * N)]), N)
    rest = read(ramp([0.5] * 3 * N), N)
    assert even.seams == pytest.approx([1.0, 1.0], rel=1e-4)
    assert rest.seams == [1.0, 1.0]
    assert max(even.flicker) < 1e-6


def test_flicker_is_the_second_difference_around_a_frame():
    measures = read(ramp([0.5, 0.5, 0.7, 0.5, 0.5]), N)
    assert measures.flicker == pytest.approx([0.2, 0.4, 0.2], abs=1e-6)


def test_drift_is_measured_against_the_first_clip():
    frame = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    grey = frame.mean(0, keepdim=True).expand(3, -1, -1)
    measures = read([frame] * N + [frame * 0.5] * N + [grey] * N, N)
    first, darker, pale = measures.drift
    assert (first.mean, first.contrast, first.saturation) == (0, 0, 0)
    whole = look(frame[None])
    assert darker.mean == pytest.approx(-0.5 * whole.mean, rel=1e-4)
    assert darker.contrast == pytest.approx(-0.5 * whole.contrast, rel=1e-4)
    assert darker.saturation == pytest.approx(-0.5 * whole.saturation, rel=1e-4)
    assert pale.mean == pytest.approx(0, abs=1e-6)
    assert pale.saturation == pytest.approx(-whole.saturation, rel=1e-4)


def test_a_clip_played_backwards_is_a_mirrored_repeat_and_a_new_one_is_not():
    forth, back, on = walk(range(N)), walk(reversed(range(N))), walk(range(N, 2 * N))
    assert read([*forth, *back], N).mirror == pytest.approx([1.0], abs=1e-5)
    assert read([*forth, *on], N).mirror[0] < 0.1
    assert read([*forth, *forth], N).mirror[0] < 0.1


def test_the_background_is_not_a_repeat():
    """Two clips on the same background correlate by the background alone, so only changing pixels are measured."""
    background = 0.5 * torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    forth, on = walk(range(N), background=background), walk(range(N, 2 * N), background=background)
    raw = torch.corrcoef(torch.stack([torch.stack(forth).flip(0).flatten(), torch.stack(on).flatten()]))[0, 1]
    assert raw > 0.3
    assert mirror_similarity(torch.stack(forth), torch.stack(on)) < 0.1


def test_a_video_without_change_has_no_mirrored_repeat():
    assert math.isnan(mirror_similarity(torch.ones(N, 3, 8, 8), torch.ones(N, 3, 8, 8)))


def test_the_meter_keeps_two_clips_and_no_more():
    meter = Meter(N)
    for i in range(50 * N + 1):
        meter.add(torch.full((3, 8, 8), i / 1000))
    buffers = [v for v in vars(meter).values() if isinstance(v, torch.Tensor)]
    buffers += [v for part in vars(meter).values() if isinstance(part, list) for v in part]
    assert sum(v.numel() for v in buffers) <= (2 * N + 2) * 3 * 64
    assert (len(meter.reading.seams), len(meter.reading.looks)) == (49, 50)


def test_a_clip_that_is_not_whole_is_left_out_of_joins_and_drift():
    measures = read(ramp([0.01 * i for i in range(2 * N + 2)]), N)
    assert (measures.frames, len(measures.seams), len(measures.drift), len(measures.mirror)) == (10, 1, 2, 1)
    assert "10 frames, 2 whole clips of 4" in continuity_text(measures)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 or more"):
        Meter(1)
    meter = Meter(2)
    meter.add(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="frame 2 is"):
        meter.add(torch.zeros(3, 8, 9))


@pytest.mark.parametrize("frames", [1, 3, 9], ids=["one frame", "less than a clip", "two clips and a bit"])
def test_videos_of_any_length_are_drawn(frames):
    measures = read(walk(range(frames)), N)
    picture = draw_continuity(measures)
    assert picture.width == 960
    assert picture.height > 4 * 320
    assert f"{frames} frames" in continuity_text(measures)
