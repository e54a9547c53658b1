"""Drawings that show the effect of each method.

Each view takes plain numbers or frames and returns a picture with axes and units. Shapes: f frames, n tokens, h height,
w width; frames are (f, 3, h, w) in 0..1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..judges.judge import Judge
from ..metrics.continuity import Continuity
from ..scores.clips import flicker, frame_difference
from ..scores.statistics import Normality
from . import views
from .plots import Axis, Chart, below, beside, caption, contact_sheet, heat, line_chart, scale_bar, table
from .probes import Shift

LINES = ("row", "column")
MARK = (230, 30, 30)
SIDE = 400  # longer side of a picture inside a chart, in pixels


class GuidedCall(Protocol):
    """One model call with the mitigating gradient, as recorded by its readout."""

    @property
    def alpha(self) -> float: ...
    @property
    def eps_ratio(self) -> float: ...
    @property
    def before(self) -> float: ...
    @property
    def after(self) -> float: ...


def as_batch(image: Image.Image) -> Tensor:
    """A picture as ComfyUI's IMAGE: (1, h, w, 3) in 0..1."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).unsqueeze(0)


def read_batch(path: Path) -> Tensor:
    """(1, h, w, 3) in 0..1, as ComfyUI's images are, from an image file."""
    with Image.open(path) as image:
        return as_batch(image.convert("RGB"))


def from_batch(images: Tensor) -> Tensor:
    """ComfyUI's IMAGE (f, h, w, c) as frames (f, 3, h, w), without transparency."""
    return images[..., :3].movedim(-1, 1)


def as_picture(frame: Tensor) -> Image.Image:  # (3, h, w) in 0..1
    return Image.fromarray((frame.detach().float().clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy())


def xt_slice(frames: Tensor, *, line: str = "row", position: float = 0.5) -> Tensor:
    """One line of pixels over time: "row" at height `position` (0 top, 1 bottom) -> (3, f, w), time downwards;
    "column" at width `position` (0 left, 1 right) -> (3, h, f), time to the right.

    A point at rest appears as a straight line along time, uniform motion as a slanted line; flicker interrupts the
    line. ValueError for frames of another shape, another line, or a position outside 0..1.
    """
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"x-t slice: the frames have the shape {tuple(frames.shape)}, not (frames, 3, height, width)")
    place = _place(frames, line, position)
    return frames[:, :, place].movedim(1, 0) if line == "row" else frames[..., place].permute(1, 2, 0)


def _place(frames: Tensor, line: str, position: float) -> int:
    if line not in LINES or not 0 <= position <= 1:
        raise ValueError(
            f"x-t slice: line is {line!r} and position {position}; give 'row' or 'column' and a position from 0 to 1"
        )
    pixels = frames.shape[2 if line == "row" else 3]
    return min(pixels - 1, int(position * pixels))


def draw_xt_slice(frames: Tensor, *, line: str = "row", position: float = 0.5) -> Image.Image:
    """The middle frame with the marked line, and the slice beside it."""
    piece = as_picture(xt_slice(frames, line=line, position=position))
    f, _, h, w = frames.shape
    place, time = _place(frames, line, position), Axis("frame", 0, f)
    x, y = Axis("x (pixels)", 0, w), Axis("y (pixels)", 0, h)
    wide, high = _picture_size(w, h)
    frame = Chart(f"Frame {f // 2}", x, y, wide, high, down=True, bare=True, grid=False)
    frame.picture(as_picture(frames[f // 2]))
    ends = ((0, place + 0.5), (w, place + 0.5)) if line == "row" else ((place + 0.5, 0), (place + 0.5, h))
    frame.draw.line([frame.point(*end) for end in ends], MARK, 3)
    axes, size = ((x, time), (wide, SIDE)) if line == "row" else ((time, y), (SIDE, high))
    chart = Chart(f"{line.capitalize()} {place} over time", *axes, *size, down=True, bare=True, grid=False)
    chart.picture(piece)
    return beside([frame.image, chart.image])


def flicker_text(frames: Tensor) -> str:
    """First and second difference over time, as text; frames: (f, 3, h, w)."""
    if len(frames) < 3:
        return f"{'one frame' if len(frames) == 1 else 'two frames'}: flicker needs three or more"
    return (
        f"{len(frames)} frames; mean absolute difference of adjacent frames {frame_difference(frames):.4f}, "
        f"flicker (second difference) {flicker(frames):.4f}, for pixels in 0 to 1"
    )


def _picture_size(w: int, h: int) -> tuple[int, int]:
    """Size of a picture with SIDE as its longer side; larger pictures keep their size up to twice that."""
    scale = min(max(SIDE, max(w, h)), 2 * SIDE) / max(w, h)
    return max(1, round(w * scale)), max(1, round(h * scale))


def draw_guidance(calls: Sequence[GuidedCall], settings: str = "") -> Image.Image:
    """The effect at each model call: change of eps, frame difference before and after, and the applied alpha."""
    number = list(range(1, len(calls) + 1))
    ratio, alpha = [c.eps_ratio for c in calls], [c.alpha for c in calls]
    difference = {"before": (number, [c.before for c in calls]), "after": (number, [c.after for c in calls])}
    options = {"x": "model call", "zero": True, "height": 320}
    return below(
        [
            caption(settings),
            line_chart({"": (number, ratio)}, title="Change of the noise prediction", y="|d eps| / |eps|", **options),
            line_chart(difference, title="Difference of adjacent frames", y="rms, latent units", **options),
            line_chart({"": (number, alpha)}, title="Strength, compensated and limited", y="alpha", **options),
        ]
    )


CONTINUITY_NOTE = (
    "seam: change between clips, relative to the usual change between frames (1: no seam). mirror: 1 if a clip repeats "
    "the previous one backwards, 0 if they are unrelated. drift: pixels of a clip minus those of the first clip."
)


def draw_continuity(continuity: Continuity) -> Image.Image:
    """Seams, flicker, drift and mirrored repeats over a long video."""
    clips = list(range(1, len(continuity.looks) + 1))
    seam_clips, flickers = clips[1:], list(range(2, len(continuity.flicker) + 2))
    drift = {
        name: (clips, [getattr(look, name) for look in continuity.drift]) for name in ("mean", "contrast", "saturation")
    }
    jumps, repeats = {"": (seam_clips, continuity.seams)}, {"": (seam_clips, continuity.mirror)}
    per_clip = {"x": "clip", "whole": True, "height": 320}
    charts = [
        line_chart(jumps, title="Seams", y="jump / change", zero=True, **per_clip),
        line_chart(repeats, title="Mirrored repeats", y="correlation", **per_clip),
        line_chart(
            {"": (flickers, continuity.flicker)}, title="Flicker", x="frame", y="|2nd diff.|", zero=True, height=320
        ),
        line_chart(drift, title="Drift", y="minus clip 1", **per_clip),
    ]
    return below([*charts, caption(CONTINUITY_NOTE)])


def continuity_text(continuity: Continuity) -> str:
    """One line for the whole video, then one line per clip; pixels in 0..1."""
    lines = [f"{continuity.frames} frames, {len(continuity.looks)} whole clips of {continuity.clip}"]
    if continuity.flicker:
        lines[0] += f"; flicker {sum(continuity.flicker) / len(continuity.flicker):.4f}"
    joins = zip(continuity.seams, continuity.mirror, strict=True)
    for number, drift in enumerate(continuity.drift, 1):
        seam, mirror = next(joins) if number > 1 else (None, None)
        join = "" if seam is None else f"seam {seam:.2f}  mirror {mirror:.2f}  "
        lines.append(
            f"clip {number}: {join}mean {drift.mean:+.4f}  contrast {drift.contrast:+.4f}  "
            f"saturation {drift.saturation:+.4f}"
        )
    return "\n".join(lines)


NORMALITY_HEAD = ("noise", "clips", "numbers in each", "mean", "std", "corr. of frames", "p > .05, %")
NORMALITY_NOTE = (
    "p > .05: share of clips that pass the Jarque-Bera test of normality (95 % interval). Independent noise: 95 %.\n"
    "HARIVO (arXiv 2410.07763) reports 94.4 % for it, and 63.0 % for noise shared between frames (PYoCo's mixed noise)."
)


def normality_rows(normalities: dict[str, Normality]) -> list[list[str]]:
    """Cells of the table, one row per kind of noise."""
    rows = []
    for name, n in normalities.items():
        low, value, high = (f"{100 * share:.1f}" for share in (n.pass_rate.low, n.pass_rate.value, n.pass_rate.high))
        correlation = "-" if n.correlation != n.correlation else f"{n.correlation:+.3f}"
        counts, moments = (str(n.samples), str(n.elements)), (f"{n.mean:+.4f}", f"{n.deviation:.4f}")
        rows.append([name, *counts, *moments, correlation, f"{value} [{low}, {high}]"])
    return rows


def normality_text(normalities: dict[str, Normality]) -> str:
    """The table as text with aligned columns."""
    rows = [list(NORMALITY_HEAD), *normality_rows(normalities)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(NORMALITY_HEAD))]
    first, *others = widths
    lines = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows]
    return "\n".join([*lines, NORMALITY_NOTE])


def draw_normality(normalities: dict[str, Normality]) -> Image.Image:
    return table("Is the noise normal?", NORMALITY_HEAD, normality_rows(normalities), NORMALITY_NOTE)


def draw_mapping_shift(shifts: Sequence[Shift], title: str = "Mapping network M") -> Image.Image:
    """HARIVO's figure A1: mean and deviation of the U-Net's input over t, with and without M, and the change."""
    t = [s.timestep for s in shifts]
    plain, mapped, x = "x", "M(x)", "timestep t (0 is the clean latent)"
    mean = {plain: (t, [s.mean for s in shifts]), mapped: (t, [s.mapped_mean for s in shifts])}
    deviation = {plain: (t, [s.deviation for s in shifts]), mapped: (t, [s.mapped_deviation for s in shifts])}
    change = {"": (t, [s.change for s in shifts])}
    return below(
        [
            line_chart(mean, title=f"{title}: mean", x=x, y="mean", height=320),
            line_chart(deviation, title="Standard deviation", x=x, y="std", height=320),
            line_chart(change, title="Size of the change", x=x, y="|M(x) - x| / |x|", zero=True, height=320),
        ]
    )


def draw_token_attention(maps: Tensor, *, timestep: float, text: str = "") -> Image.Image:
    """Attention of pixels to the frame-wise tokens. maps: (f, n, h, w), probabilities averaged over heads and layers.

    One row per token and one column per frame, on a common colour scale; below, the share of each token per frame.
    """
    maps = maps.float().cpu()
    f, n = maps.shape[:2]
    columns, high, tokens = frame_columns(f), maps.max().item(), [f"token {k + 1}" for k in range(n)]
    tiles = [[heat(maps[frame, k].numpy(), high) for frame in columns] for k in range(n)]
    title = f"Attention to the frame-wise tokens at t = {timestep:.0f}"
    sheet = contact_sheet(tiles, tokens, ["frame", *map(str, columns)], title=title, text=text)
    shares = {name: (list(range(f)), maps[:, k].mean((1, 2)).tolist()) for k, name in enumerate(tokens)}
    chart = line_chart(shares, title="Share of attention", x="frame", y="mean over pixels", zero=True, height=320)
    return below([sheet, scale_bar("attention probability", high, width=sheet.width), chart])


def frame_columns(frames: int, most: int = 16) -> list[int]:
    """Indices of the frames to draw: all, or `most` evenly spaced ones including the first and last."""
    if frames <= most:
        return list(range(frames))
    return [round(i * (frames - 1) / (most - 1)) for i in range(most)]


def through_sprite(clip: Tensor, motion: str, judge: Judge) -> Image.Image:
    """x-t slice along the motion: a row of pixels, or a column for up and down, with time downwards."""
    upright = motion in ("up", "down")
    centres = judge(clip).centres()
    middle = centres[:, 0 if upright else 1].nanmean().nan_to_num(0.5).item()
    line = views.xt_slice(clip, line="column" if upright else "row", position=middle)
    return views.as_picture(line.transpose(1, 2) if upright else line)
