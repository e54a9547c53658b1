"""Views are correct: values are at the positions of the axes and in the colours of the legend."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from stillmotion.evaluation.drawing import plots
from stillmotion.evaluation.drawing.plots import (
    COLOURS,
    Chart,
    axis,
    contact_sheet,
    decades,
    heat,
    line_chart,
    round_steps,
)
from stillmotion.evaluation.drawing.probes import mapping_shift
from stillmotion.evaluation.drawing.views import (
    as_batch,
    as_picture,
    draw_guidance,
    draw_mapping_shift,
    draw_normality,
    draw_token_attention,
    draw_xt_slice,
    from_batch,
    normality_rows,
    normality_text,
    xt_slice,
)
from stillmotion.evaluation.scores.statistics import normality

ALPHA_BARS = torch.linspace(0.999, 0.005, 1000)


def moving_dot(frames=8, size=16, step=1, y=5):
    clip = torch.zeros(frames, 3, size, size)
    for i in range(frames):
        clip[i, :, y, 2 + i * step] = 1.0
    return clip


def near(image, point, colour, reach=3):
    """Whether a pixel of the colour lies within `reach` of the point."""
    pixels = np.asarray(image)
    x, y = (round(v) for v in point)
    patch = pixels[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
    return bool((patch == np.array(colour)).all(-1).any())


def test_even_motion_is_a_slanted_line_and_rest_a_straight_one():
    row = xt_slice(moving_dot(), line="row", position=5.5 / 16)
    assert row.shape == (3, 8, 16)
    assert row[0].argmax(1).tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    rest = xt_slice(moving_dot(step=0), line="column", position=2.5 / 16)
    assert rest.shape == (3, 16, 8)
    assert rest[0].argmax(0).tolist() == [5] * 8


def test_a_slice_is_made_of_the_pixels_of_that_line():
    clip = torch.rand(5, 3, 6, 7)
    for y in range(6):
        assert torch.equal(xt_slice(clip, line="row", position=(y + 0.5) / 6), clip[:, :, y].transpose(0, 1))
    for x in range(7):
        expected = clip[..., x].permute(1, 2, 0)
        assert torch.equal(xt_slice(clip, line="column", position=(x + 0.5) / 7), expected)
    assert torch.equal(xt_slice(clip, position=1.0), clip[:, :, 5].transpose(0, 1))


def test_invalid_lines_of_a_video_are_refused():
    clip = torch.rand(5, 3, 6, 7)
    with pytest.raises(ValueError, match="'row' or 'column'"):
        xt_slice(clip, line="diagonal")
    with pytest.raises(ValueError, match="0 to 1"):
        xt_slice(clip, position=1.2)
    with pytest.raises(ValueError, match="frames, 3, height, width"):
        xt_slice(clip[:, 0])


def test_the_picture_of_a_slice_holds_the_slice_and_marks_its_line():
    image = draw_xt_slice(moving_dot(), position=5.5 / 16)
    assert near(image, (plots.LEFT + 400 * 2.5 / 16, plots.TOP + 400 * 5.5 / 16), (230, 30, 30))
    x = image.width // 2 + plots.LEFT
    assert near(image, (x + 400 * 2.5 / 16, plots.TOP + 400 * 0.5 / 8), (255, 255, 255))
    assert near(image, (x + 400 * 9.5 / 16, plots.TOP + 400 * 7.5 / 8), (255, 255, 255))
    assert not near(image, (x + 400 * 12.5 / 16, plots.TOP + 400 * 7.5 / 8), (255, 255, 255))


@pytest.mark.parametrize(("frames", "high", "wide"), [(1, 64, 64), (24, 720, 1280), (3, 8, 300)])
def test_any_size_can_be_drawn(frames, high, wide):
    for line in ("row", "column"):
        image = draw_xt_slice(torch.rand(frames, 3, high, wide), line=line)
        assert 400 < image.width < 3000


def test_images_go_to_comfyui_and_back():
    picture = as_picture(torch.rand(3, 5, 7))
    batch = as_batch(picture)
    assert batch.shape == (1, 5, 7, 3)
    assert as_picture(from_batch(batch)[0]).tobytes() == picture.tobytes()
    assert from_batch(torch.rand(4, 5, 7, 4)).shape == (4, 3, 5, 7)


def test_a_chart_puts_values_where_its_axes_say():
    xs, ys = [0.0, 5.0, 10.0], [1.0, 3.0, 2.0]
    chart = Chart("a", axis("x", xs), axis("y", ys))
    chart.line(xs, ys, COLOURS[1])
    for x, y in zip(xs, ys, strict=True):
        assert near(chart.image, chart.point(x, y), COLOURS[1], reach=1)
    assert chart.point(5, 3)[1] < chart.point(5, 1)[1]
    assert not near(chart.image, chart.point(5, 1.5), COLOURS[1])


def test_a_legend_does_not_cover_the_title():
    def chart(*names):
        return np.asarray(line_chart({name: ([0, 1], [0, 1]) for name in names}, title="Drift", x="frame", y="drift"))

    alone, short, wide = chart("a"), chart("a", "b"), chart(*("a rather long name of line " + end for end in "abc"))
    assert short.shape == alone.shape
    assert wide.shape[0] > alone.shape[0]
    assert (wide[: plots.TOP] == alone[: plots.TOP]).all()
    for colour in COLOURS[:3]:
        assert (wide[alone.shape[0] :] == np.array(colour)).all(-1).any()


def test_a_logarithmic_axis_has_equal_steps_for_equal_ratios():
    line = axis("sigma", [0.1, 10.0], log=True)
    assert line.place(1) - line.place(0.1) == pytest.approx(line.place(10) - line.place(1))
    assert decades(0.03, 14.6) == [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
    assert decades(1e-6, 1.0) == [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0]


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-3.0, 17.0), (1e-6, 3e-6), (99.0, 101.0), (0.0, 25_000.0)])
def test_ticks_are_few_even_round_and_inside(ends):
    marks = round_steps(*ends)
    assert 3 <= len(marks) <= 9
    assert all(ends[0] - 1e-12 <= m <= ends[1] + 1e-12 for m in marks)
    steps = [b - a for a, b in pairwise(marks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)


@pytest.mark.parametrize("values", [[], [0.0], [3.0, 3.0], [math.nan, math.inf], [-1.0]])
def test_charts_without_values_with_one_value_or_with_nan_are_drawn(values):
    for log in (False, True):
        image = line_chart({"a": (list(range(len(values))), values)}, title="", x="x", y="y", log_y=log)
        assert image.width == 960


def test_heat_goes_from_dark_to_bright():
    brightness = np.asarray(heat(np.linspace(0, 1, 30)[None], 1.0)).astype(float).sum(-1)[0]
    assert (np.diff(brightness) > 0).all()


@dataclass(frozen=True)
class Call:
    eps_ratio: float
    alpha: float = 10.0
    before: float = 1.0
    after: float = 0.9


def test_the_force_of_each_call_is_drawn():
    calls = [Call(0.3), Call(0.1), Call(0.0, alpha=0.0)]
    image, other = draw_guidance(calls), draw_guidance([*calls[:2], Call(0.2)])
    assert image.size == other.size
    assert image.tobytes() != other.tobytes()
    assert image.height == plots.caption("").height + 3 * 320
    image = image.crop((0, plots.caption("").height, 960, image.height))
    chart = Chart("", axis("", [1, 3]), axis("", [0.3, 0.1, 0.0], zero=True), height=320)
    for number, ratio in enumerate([0.3, 0.1, 0.0], 1):
        assert near(image, chart.point(number, ratio), COLOURS[0])


def test_the_table_of_noise_contains_the_measurements():
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(50, 4, 2, 8, 8, generator=g)
    tests = {"independent": normality(noise), "one frame": normality(noise[:, :1])}
    rows = normality_rows(tests)
    assert rows[0][:3] == ["independent", "50", "512"]
    assert rows[1][5] == "-"
    assert float(rows[0][6].split()[0]) == pytest.approx(100 * tests["independent"].pass_rate.value)
    assert draw_normality(tests).width > 600
    text = normality_text(tests).splitlines()
    assert len({len(line) for line in text[:3]}) == 1
    assert text[1].split()[0] == "independent"


def test_small_print_is_broken_between_words():
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen " * 2
    short, long = plots.caption("one"), plots.caption(text)
    assert long.height > short.height
    assert long.width == short.width == 960
    assert " ".join(plots._wrap(text, 400)).split() == text.split()
    assert all(plots.length(line) <= 400 for line in plots._wrap(text, 400))


def test_the_shift_of_a_known_mapping_is_found():
    latents = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    steps = [0, 500, 999]
    for shift in mapping_shift(lambda x, _: 2 * x + 0.5, latents, 4, alpha_bars=ALPHA_BARS, timesteps=steps):
        assert shift.mapped_mean == pytest.approx(2 * shift.mean + 0.5, abs=1e-5)
        assert shift.mapped_deviation == pytest.approx(2 * shift.deviation, rel=1e-5)
        assert shift.deviation == pytest.approx(1, abs=0.02)
    still = mapping_shift(lambda x, _: x, latents, 8, alpha_bars=ALPHA_BARS, timesteps=steps)
    assert [s.change for s in still] == [0, 0, 0]
    assert draw_mapping_shift(still).height == 960


def test_the_mapping_sees_the_noise_level_of_each_timestep_and_whole_clips_only():
    calls = []
    zero = torch.zeros(6, 4, 16, 16)
    mapping_shift(
        lambda x, f: calls.append((x.std().item(), f)) or x, zero, 3, alpha_bars=ALPHA_BARS, timesteps=[0, 999]
    )
    levels = [(1 - ALPHA_BARS[t].item()) ** 0.5 for t in (0, 999)]
    assert [s for s, _ in calls] == pytest.approx(levels, rel=0.02)
    assert {f for _, f in calls} == {3}
    with pytest.raises(ValueError, match="divisor"):
        mapping_shift(lambda x, _: x, zero, 4, alpha_bars=ALPHA_BARS, timesteps=[0])


def test_the_map_of_a_token_is_where_its_row_and_column_say():
    maps = torch.zeros(4, 3, 8, 8)
    maps[2, 1] = 0.5
    image = np.asarray(draw_token_attention(maps, timestep=500)).astype(int).sum(-1)
    tile = 160 + 4
    inside = {(f, k): image[104 + k * tile + 80, plots.LEFT + f * tile + 80] for f in range(4) for k in range(3)}
    assert max(inside, key=lambda place: inside[place]) == (2, 1)
    assert len({v for place, v in inside.items() if place != (2, 1)}) == 1


def test_a_long_clip_shows_its_first_and_last_frame():
    image = draw_token_attention(torch.rand(33, 3, 4, 4), timestep=10)
    assert image.width < 2000


def test_long_names_of_rows_are_whole():
    """The titles are to the left of the images, and inside the sheet."""
    tiles = [[Image.new("RGB", (4, 4), "white")]]
    sheet = contact_sheet(tiles, ["the mapping network, with its loss"], ["", "a"], title="t")
    dark = np.asarray(sheet.convert("L"))[130:] < 128
    assert dark.any()
    assert not dark[:, 0].any()


def test_clips_are_counted_in_whole_numbers(monkeypatch):
    numbers = []
    monkeypatch.setattr(plots, "number", lambda value: numbers.append(value) or "")
    line_chart({"": ([2, 3, 4], [0.1, 0.2, 0.3])}, title="", x="clip", y="", whole=True)
    assert [v for v in numbers if v >= 2] == [2, 3, 4]
