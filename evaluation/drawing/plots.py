"""Small charts with PIL: lines, pictures and heat maps in a frame with ticks, labels and units, and tables.

ComfyUI includes PIL but no plotting library. Every chart is an RGB `Image` that is legible at half its size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WHITE, INK, PALE, FAINT = (255, 255, 255), (40, 40, 40), (110, 110, 110), (222, 222, 222)
COLOURS = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
)  # by Okabe and Ito
HEAT = ((13, 8, 60), (70, 30, 130), (170, 50, 110), (240, 120, 60), (252, 225, 110), (255, 255, 235))
TEXT, TITLE = 20, 24
LEFT, RIGHT, TOP, BOTTOM = 104, 28, 52, 70  # margins of a frame, pixels


def font(size: int = TEXT) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def length(text: str, size: int = TEXT) -> float:
    """Width of a line of text in pixels."""
    return font(size).getlength(text)


@dataclass(frozen=True)
class Axis:
    """One axis: its label with unit, its ends, and whether it is logarithmic."""

    label: str
    low: float
    high: float
    log: bool = False
    ticks: Sequence[float] = field(default=())

    def place(self, value: float) -> float:
        """Position of a value, 0 at the low and 1 at the high end; NaN for values <= 0 on a logarithmic axis."""
        if self.log and value <= 0:
            return math.nan
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / (high - low)

    def marks(self) -> list[float]:
        return list(self.ticks) or (decades(self.low, self.high) if self.log else round_steps(self.low, self.high))


def axis(label: str, values: Sequence[float], *, log: bool = False, zero: bool = False) -> Axis:
    """An axis for `values`, a little wider than their range, with a length above 0. zero: include 0."""
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    finite = [*finite, 0.0] if zero or not finite else finite
    low, high = min(finite), max(finite)
    if log:
        return Axis(label, low / 1.2, high * 1.2, log=True) if low > 0 else Axis(label, 0.1, 10.0, log=True)
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return Axis(label, low - room * (low != 0 or not zero), high + room)


def round_steps(low: float, high: float, most: int = 6) -> list[float]:
    """At most about `most` multiples of 1, 2 or 5 times a power of ten.

    >>> round_steps(-0.1, 1.05)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.95)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between `low` and `high`; only the powers if there are many.

    >>> decades(0.3, 25)
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) < 7 else (1,)
    marks = [round(m * 10.0**p, 12) for p in powers for m in factors]
    return [m for m in marks if low <= m <= high]


def number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass
class Chart:
    """A frame with two axes; drawing uses the units of the axes. y points up, or down with `down`."""

    title: str
    x: Axis
    y: Axis
    width: int = 960
    height: int = 480
    down: bool = False
    grid: bool = True
    bare: bool = False  # `width` x `height` is the inner part, without the margins

    def __post_init__(self) -> None:
        if self.bare:
            self.width, self.height = self.width + LEFT + RIGHT, self.height + TOP + BOTTOM
        self.image = Image.new("RGB", (self.width, self.height), WHITE)
        self.draw = ImageDraw.Draw(self.image)
        self.box = LEFT, TOP, self.width - RIGHT, self.height - BOTTOM
        self.draw.text((LEFT, 12), self.title, INK, font(TITLE))
        self._ticks()

    def point(self, x: float, y: float) -> tuple[float, float]:
        left, top, right, bottom = self.box
        up = self.y.place(y)
        return left + self.x.place(x) * (right - left), top + (up if self.down else 1 - up) * (bottom - top)

    def _ticks(self) -> None:
        left, top, right, bottom = self.box
        outside, colour = (0, FAINT) if self.grid else (5, INK)
        for value in self.x.marks():
            at = self.point(value, self.y.low)[0]
            self.draw.line((at, bottom + outside, at, top if self.grid else bottom), colour)
            self.draw.text((at, bottom + 8), number(value), INK, font(), anchor="ma")
        for value in self.y.marks():
            at = self.point(self.x.low, value)[1]
            self.draw.line((left - outside, at, right if self.grid else left, at), colour)
            self.draw.text((left - 8, at), number(value), INK, font(), anchor="rm")
        self.draw.rectangle(self.box, outline=INK, width=1)
        self.draw.text(((left + right) / 2, self.height - 10), self.x.label, INK, font(), anchor="mb")
        side = sideways(self.y.label)
        self.image.paste(side, (8, int((top + bottom - side.height) / 2)))

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: tuple[int, int, int]) -> None:
        points = [self.point(x, y) for x, y in zip(xs, ys, strict=True)]
        points = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
        if len(points) > 1:
            self.draw.line(points, colour, 3, joint="curve")
        for x, y in points:
            self.draw.ellipse((x - 4, y - 4, x + 4, y + 4), colour)

    def picture(self, picture: Image.Image) -> None:
        """Fill the frame with a picture, without interpolation."""
        left, top, right, bottom = self.box
        size = right - left, bottom - top
        self.image.paste(picture.resize(size, Image.Resampling.NEAREST), (left, top))
        self.draw.rectangle(self.box, outline=INK, width=1)

    def legend(self, names: Sequence[str]) -> None:
        """Draw a legend right of the title, or below the chart if there is no room, in the order of COLOURS."""
        at, top = self.width - RIGHT, 16
        if at - sum(length(name) + 44 for name in names) < LEFT + length(self.title, TITLE):
            top = self.height + 4
            self.image = below([self.image, Image.new("RGB", (self.width, 40), WHITE)])
            self.draw = ImageDraw.Draw(self.image)
        for name, colour in reversed(list(zip(names, COLOURS, strict=False))):
            at -= int(length(name))
            self.draw.text((at, top), name, INK, font())
            self.draw.rectangle((at - 26, top + 6, at - 8, top + 16), colour)
            at -= 44


def line_chart(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    zero: bool = False,
    whole: bool = False,
    height: int = 400,
) -> Image.Image:
    """Lines by name, each (xs, ys), with a legend if there are several. Values that are not finite are skipped.

    zero: include 0 in the y axis. whole: x is an integer, so ticks are only at integers.
    """
    xs = [v for line in lines.values() for v in line[0]]
    ys = [v for line in lines.values() for v in line[1]]
    across = axis(x, xs, log=log_x)
    if whole:
        across = replace(across, ticks=[mark for mark in across.marks() if mark == int(mark)])
    chart = Chart(title, across, axis(y, ys, log=log_y, zero=zero), height=height)
    for (values, heights), colour in zip(lines.values(), COLOURS, strict=False):
        chart.line(values, heights, colour)
    if len(lines) > 1:
        chart.legend(list(lines))
    return chart.image


def heat(values: np.ndarray, high: float, low: float = 0.0) -> Image.Image:
    """(h, w) numbers as colours, dark at `low`, bright at `high`."""
    place = np.clip((values - low) / (high - low or 1.0), 0, 1)
    steps = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(place, steps, [colour[c] for colour in HEAT]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def scale_bar(label: str, high: float, low: float = 0.0, width: int = 960) -> Image.Image:
    """The colour scale of `heat`: a strip with numbers below and a label beside it."""
    image = Image.new("RGB", (width, 64), WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((LEFT, 20), label, INK, font(), anchor="lm")
    left, right = LEFT + int(length(label)) + 24, width - RIGHT - 24
    strip = heat(np.linspace(low, high, 256)[None], high, low).resize((right - left, 22))
    image.paste(strip, (left, 8))
    for share in (0.0, 0.5, 1.0):
        draw.text((left + share * (right - left), 36), f"{low + share * (high - low):.3g}", INK, font(), anchor="ma")
    return image


def sideways(text: str) -> Image.Image:
    """A line of text, rotated to read upwards."""
    label = Image.new("RGB", (int(length(text)) + 4, TEXT + 8), WHITE)
    ImageDraw.Draw(label).text((2, 2), text, INK, font())
    return label.rotate(90, expand=True)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> Image.Image:
    """Rows of text; the first column is left-aligned, the others right-aligned. `note`: small print below."""
    notes, end = note.splitlines(), 66 + 34 * (len(rows) + 1)
    widths = [max(length(row[column]) for row in (head, *rows)) + 32 for column in range(len(head))]
    wide = max(sum(widths), length(title, TITLE), *(length(line) for line in notes or [""]))
    image = Image.new("RGB", (int(wide) + 40, end + 4 + 28 * len(notes)), WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((20, 12), title, INK, font(TITLE))
    for place, row in enumerate((head, *rows)):
        _table_row(draw, 56 + 34 * place, row, widths)
    draw.line((20, 86, 20 + sum(widths), 86), INK, 1)
    for place, line in enumerate(notes):
        draw.text((20, end + 28 * place), line, PALE, font())
    return image


def _table_row(draw: ImageDraw.ImageDraw, top: int, row: Sequence[str], widths: Sequence[float]) -> None:
    at = 20.0
    for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
        right = column > 0
        draw.text((at + (width - 16 if right else 0), top), cell, INK, font(), anchor="ra" if right else "la")
        at += width


def caption(text: str, width: int = 960) -> Image.Image:
    """Small print, wrapped into lines."""
    lines = [line for part in text.splitlines() for line in _wrap(part, width - LEFT - RIGHT)]
    image = Image.new("RGB", (width, 16 + 28 * len(lines)), WHITE)
    for place, line in enumerate(lines):
        ImageDraw.Draw(image).text((LEFT, 12 + 28 * place), line, PALE, font())
    return image


def _wrap(text: str, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if length(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def contact_sheet(
    tiles: Sequence[Sequence[Image.Image]],  # rows of pictures
    rows: Sequence[str],
    columns: Sequence[str],  # the first is above the names of the rows
    *,
    title: str,
    text: str = "",
) -> Image.Image:
    """Pictures in rows and columns under a title and small print, scaled without interpolation."""
    tile = max(48, min(160, 1400 // len(tiles[0])))
    step, top, left = tile + 4, 104, max([LEFT, *(int(length(name)) + 20 for name in rows)])
    sheet = Image.new("RGB", (max(960, left + len(tiles[0]) * step), top + len(tiles) * step), WHITE)
    draw = ImageDraw.Draw(sheet)
    draw.text((left, 12), title, INK, font(TITLE))
    draw.text((left, 44), text, PALE, font())
    draw.text((left - 10, top - 6), columns[0], INK, font(), anchor="rb")
    for column, name in enumerate(columns[1:]):
        draw.text((left + column * step + tile // 2, top - 6), name, INK, font(), anchor="mb")
    for row, (name, pictures) in enumerate(zip(rows, tiles, strict=True)):
        draw.text((left - 10, top + row * step + tile // 2), name, INK, font(), anchor="rm")
        for column, picture in enumerate(pictures):
            large = picture.resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(large, (left + column * step, top + row * step))
    return sheet


def below(images: Sequence[Image.Image]) -> Image.Image:
    """Images one below another, left-aligned, on white."""
    sheet = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), WHITE)
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Images next to each other, on white."""
    sheet = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), WHITE)
    x = 0
    for image in images:
        sheet.paste(image, (x, 0))
        x += image.width
    return sheet
