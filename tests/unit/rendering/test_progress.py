"""What a render shows while it runs: the share of the video, the remaining time, and a picture of each clip."""

import numpy as np
import pytest

from stillmotion.rendering.job import open_job
from stillmotion.rendering.loop import Output, render
from stillmotion.rendering.preview import CAPTION, HEIGHT, Clock, Progress, Strip, format_time

from .toy import FRAMES, IDENTITY, SIZE, Heard, Toy, output, run


class Grey(Toy):
    """Every frame has its own grey value, 40 times its number. part: frames that are decoded at once."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def decode(self, latents):
        frames = np.arange(len(latents), dtype=np.uint8)[:, None, None, None] * np.full(
            (1, SIZE, SIZE, 3), 40, np.uint8
        )
        for start in range(0, len(latents), self.part):
            yield frames[start : start + self.part]


def test_the_share_is_nine_tenths_for_sampling_and_one_for_decoding(tmp_path):
    """Toy reports three steps of each clip and decodes four and two of its six frames."""
    _, _, watch = run(tmp_path, 2)
    steps = [*(0.9 * k / 3 for k in (1, 2, 3)), 0.9 + 0.1 * 4 / 6, 1.0]
    assert [report.share for report in watch.told] == pytest.approx(
        [(clip + step) / 2 for clip in (0, 1) for step in steps]
    )
    assert [(report.clip, report.clips) for report in watch.told] == [(1, 2)] * 5 + [(2, 2)] * 5
    _, _, watch = run(tmp_path, 5)  # two of five clips are complete
    assert [report.share for report in watch.told[:5]] == pytest.approx([(2 + step) / 5 for step in steps])
    assert watch.told[-1].share == pytest.approx(1)
    assert watch.told[-1].seconds_left == pytest.approx(0)


@pytest.mark.parametrize("part", [1, 2, 3, 4, 6])
def test_the_strip_has_the_middle_frame_of_every_clip_whatever_is_decoded_at_once(tmp_path, part):
    watch = Heard()
    with open_job(tmp_path, "toy", IDENTITY) as (job, _):
        render(job, 3, Grey(part).work(), output(), watch=watch)
    strip = watch.told[-1].strip
    assert strip.size == (3 * HEIGHT, HEIGHT + CAPTION)  # the frames are square
    pixels = np.asarray(strip)[:HEIGHT]
    assert (pixels == 40 * (FRAMES // 2)).all()
    widths = [report.strip.width for report in watch.told if report.strip is not None]
    assert sorted(set(widths)) == [160, 192, 288]  # one picture leaves room for the caption
    assert all(report.strip is None for report in watch.told[:3])  # sampling


def test_the_strip_has_the_last_six_clips_and_keeps_the_aspect_ratio():
    strip = Strip()
    assert strip.draw("nothing yet") is None
    for i in range(8):
        strip.add(np.full((20, 30, 3), 10 * i, dtype=np.uint8))
    pixels = np.asarray(strip.draw(""))
    assert pixels.shape == (96 + 16, 6 * 144, 3)
    assert [pixels[50, 72 + 144 * i].tolist() for i in range(6)] == [[10 * i] * 3 for i in range(2, 8)]
    assert not pixels[96:].any()
    caption = np.asarray(strip.draw("clip 8 of 9"))
    assert (caption[:96] == pixels[:96]).all()
    assert caption[98:].max() > 200
    thin = Strip()
    thin.add(np.zeros((900, 2, 3), dtype=np.uint8))
    assert thin.pictures[0].size == (1, 96)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (149, "2 min"),
        (151, "3 min"),
        (89.4 * 60, "89 min"),
        (90 * 60, "1 h 30 min"),
        (7500, "2 h 5 min"),
        (48 * 3600, "48 h 0 min"),
    ],
)
def test_times_are_seconds_then_minutes_then_hours(seconds, text):
    assert format_time(seconds) == text


def test_the_text_of_the_progress():
    assert str(Progress(2, 7, 0.1, None)) == "clip 2 of 7"
    assert str(Progress(2, 7, 0.1, 100.0, unit="frame")) == "frame 2 of 7, 2 min left"


def test_the_clock_knows_nothing_before_the_first_work():
    times = iter([10.0, 11.0, 16.0])
    clock = Clock(3.0, lambda: next(times))
    assert clock.seconds_left(0.0) is None
    assert clock.seconds_left(0.5) == pytest.approx(1 / 0.5 * 2.5)
    assert clock.seconds_left(3.0) == 0


@pytest.mark.parametrize(("frames", "doubled"), [(8, 0), (8, 2), (1, 0), (5, 4)])
def test_a_clip_begins_where_those_before_it_end(frames, doubled):
    """Every clip but the first is shorter by the frames that the previous clip has already."""
    place: Output = output(frames=frames, doubled=doubled)
    lengths = [frames] + [frames - doubled] * 9
    assert [place.first(clip) for clip in range(11)] == [sum(lengths[:clip]) for clip in range(11)]


def test_pictures_are_numbered_from_one_without_gaps(tmp_path):
    with open_job(tmp_path, "toy", IDENTITY) as (job, _):
        paths = [path for clip in range(3) for path in output("png", frames=4, doubled=1).pictures(job, clip)]
        assert [path.name for path in paths] == [f"{i:06}.png" for i in range(1, 4 + 3 + 3 + 1)]
        assert {path.parent for path in paths} == {job.folder / "frames"}
        assert output(frames=4).pictures(job, 0) == []
