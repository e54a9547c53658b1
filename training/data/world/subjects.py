"""Eleven subjects, viewed from the side, so that a single picture shows the direction in which each moves.

Every subject faces right, is two units long, and has a periodic animation of propellers, wings, a tail or a flame:
`beat` is its time, in cycles. `roll` is the distance that the subject has moved, in its own units; it turns wheels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .figure import (
    BLACK,
    FLAME,
    GLASS,
    RGB,
    STEEL,
    SUN,
    WHITE,
    WOOD,
    Figure,
    box,
    circle,
    ellipse,
    line,
    mix,
    polygon,
)

COLOURS: dict[str, RGB] = {
    "red": (0.88, 0.10, 0.12),
    "green": (0.13, 0.66, 0.20),
    "blue": (0.14, 0.30, 0.92),
    "yellow": (0.98, 0.86, 0.10),
    "orange": (0.98, 0.50, 0.06),
    "purple": (0.52, 0.16, 0.76),
    "cyan": (0.10, 0.80, 0.88),
    "pink": (0.99, 0.50, 0.74),
}
TURN = 2 * np.pi


@dataclass(frozen=True)
class Moment:
    """The inputs of a subject's drawing other than its colour, each (f, 1, 1)."""

    beat: NDArray
    roll: NDArray


Draw = Callable[[Figure, RGB, Moment], None]


@dataclass(frozen=True)
class Kind:
    """A subject: its drawing, its half length in image widths at medium size, and the lowest y of its body."""

    draw: Draw
    half: float
    bottom: float
    beats: float  # cycles per clip


def car(g: Figure, c: RGB, m: Moment) -> None:
    x, y, dark = g.x, g.y, mix(c, BLACK, 0.35)
    g.add(polygon(x, y, (-0.62, -0.02), (-0.40, -0.40), (0.18, -0.40), (0.52, -0.02), r=0.05), c)
    g.add(polygon(x, y, (-0.50, -0.04), (-0.35, -0.33), (-0.12, -0.33), (-0.12, -0.04)), GLASS)
    g.add(polygon(x, y, (-0.02, -0.04), (-0.02, -0.33), (0.15, -0.33), (0.39, -0.04)), GLASS)
    g.add(box(x, y, 0.0, 0.13, 0.97, 0.20, 0.14), c)
    g.add(box(x, y, 0.0, 0.27, 0.93, 0.06, 0.04), dark)
    g.add(ellipse(x, y, 0.88, 0.08, 0.09, 0.08), SUN, 0)
    g.add(box(x, y, -0.92, 0.08, 0.05, 0.07, 0.02), (1.0, 0.25, 0.15), 0)
    for cx in (-0.54, 0.54):
        _wheel(g, cx, 0.32, 0.23, m.roll)


def _wheel(g: Figure, cx: float, cy: float, r: float, roll: NDArray, rim: RGB = STEEL) -> None:
    g.add(circle(g.x, g.y, cx, cy, r), BLACK)
    g.add(circle(g.x, g.y, cx, cy, r * 0.62), mix(rim, WHITE, 0.4))
    turn = roll / r
    px, py = r * 0.55 * np.cos(turn), r * 0.55 * np.sin(turn)
    g.add(line(g.x, g.y, (cx - px, cy - py), (cx + px, cy + py), r * 0.16), BLACK)


def train(g: Figure, c: RGB, m: Moment) -> None:
    x, y, dark = g.x, g.y, mix(c, BLACK, 0.45)
    g.add(polygon(x, y, (0.50, -0.52), (0.74, -0.52), (0.68, -0.10), (0.56, -0.10)), BLACK)
    g.add(box(x, y, 0.62, -0.52, 0.14, 0.05, 0.02), BLACK)
    g.add(circle(x, y, 0.16, -0.20, 0.14), SUN)
    g.add(box(x, y, 0.25, 0.0, 0.60, 0.21, 0.08), c)
    g.add(box(x, y, 0.72, 0.0, 0.12, 0.21, 0.06), dark)
    g.add(box(x, y, -0.60, -0.15, 0.30, 0.38, 0.03), c)
    g.add(box(x, y, -0.60, -0.24, 0.17, 0.15, 0.03), GLASS)
    g.add(box(x, y, -0.60, -0.56, 0.39, 0.06, 0.03), dark)
    g.add(polygon(x, y, (0.70, 0.20), (0.86, 0.20), (1.0, 0.48), (0.70, 0.48)), (0.75, 0.12, 0.10))
    g.add(box(x, y, -0.05, 0.24, 0.86, 0.06, 0.02), BLACK)
    g.add(circle(x, y, 0.90, -0.02, 0.07), SUN, 0)
    for cx, r in ((-0.62, 0.22), (-0.12, 0.22), (0.34, 0.17)):
        _wheel(g, cx, 0.54 - r, r, m.roll, mix(c, WHITE, 0.3))
    px, py = 0.12 * np.cos(m.roll / 0.22), 0.12 * np.sin(m.roll / 0.22)
    g.add(line(x, y, (-0.62 + px, 0.32 + py), (0.30 + px, 0.34 + py), 0.045), STEEL)


def boat(g: Figure, c: RGB, m: Moment) -> None:
    x, y, wind = g.x, g.y, 0.06 * np.sin(TURN * m.beat)
    g.add(box(x, y, 0.02, -0.22, 0.035, 0.72), WOOD)
    g.add(polygon(x, y, (-0.04, -0.88), (-0.04, 0.28), (-0.80 - wind, 0.28), (-0.46 - wind, -0.30)), c)
    g.add(polygon(x, y, (0.10, -0.78), (0.50 + wind, -0.18), (0.82 + wind, 0.28), (0.10, 0.28)), mix(c, WHITE, 0.35))
    g.add(polygon(x, y, (0.02, -0.98), (0.02, -0.82), (-0.26, -0.90 + wind)), mix(c, BLACK, 0.2))
    g.add(polygon(x, y, (-0.80, 0.40), (1.0, 0.34), (0.66, 0.74), (-0.62, 0.74)), WHITE)
    g.add(polygon(x, y, (-0.78, 0.44), (0.94, 0.42), (0.86, 0.54), (-0.73, 0.54)), c)
    g.add(polygon(x, y, (-0.68, 0.64), (0.76, 0.64), (0.66, 0.76), (-0.62, 0.76)), WOOD)


def balloon(g: Figure, c: RGB, m: Moment) -> None:
    x, y, pale = g.x, g.y, mix(c, WHITE, 0.80)
    flicker = 0.5 + 0.5 * np.sin(TURN * m.beat * 3)
    wave = 0.08 * np.sin(TURN * m.beat)
    g.add(polygon(x, y, (0.0, -1.02), (0.0, -0.84), (-0.42, -0.93 + wave)), mix(c, BLACK, 0.15))
    for side in (-1, 1):
        g.add(line(x, y, (side * 0.30, 0.28), (side * 0.12, 0.72), 0.022), WOOD)
    flame = ellipse(x, y, 0.0, 0.44, 0.07, 0.10 + 0.07 * flicker)
    skirt = polygon(x, y, (-0.60, -0.06), (0.60, -0.06), (0.20, 0.42), (-0.20, 0.42))
    bulb = np.minimum(circle(x, y, 0.0, -0.24, 0.62), skirt)
    g.add(bulb, c)
    for edge in (0.27, 0.78):
        ring = np.abs(x) / np.sqrt(np.maximum(1 - ((y + 0.24) / 0.66) ** 2, 0.05)) / 0.62 - edge
        g.add(np.maximum(bulb, np.abs(ring) * 0.6 - 0.085), pale)
    g.add(flame, SUN, 0)
    g.add(box(x, y, 0.0, 0.82, 0.19, 0.14, 0.04), WOOD)
    g.add(box(x, y, 0.0, 0.72, 0.21, 0.04, 0.02), mix(WOOD, WHITE, 0.3))


def plane(g: Figure, c: RGB, m: Moment) -> None:
    x, y, dark, pale = g.x, g.y, mix(c, BLACK, 0.3), mix(c, WHITE, 0.55)
    g.add(polygon(x, y, (-0.98, -0.50), (-0.76, -0.50), (-0.44, -0.08), (-0.86, -0.02)), c)
    g.add(polygon(x, y, (0.02, -0.14), (-0.22, -0.46), (-0.36, -0.46), (-0.28, -0.12)), dark)
    body = polygon(
        x, y, (-0.92, -0.14), (0.56, -0.20), (0.88, 0.0), (0.62, 0.18), (-0.30, 0.20), (-0.92, -0.04), r=0.03
    )
    g.add(body, c)
    g.add(np.maximum(body, 0.07 - y), pale)
    g.add(polygon(x, y, (0.46, -0.16), (0.58, -0.16), (0.74, -0.03), (0.46, -0.03)), GLASS)
    for cx in (-0.40, -0.18, 0.04, 0.26):
        g.add(circle(x, y, cx, -0.06, 0.055), GLASS)
    g.add(polygon(x, y, (-0.20, 0.10), (0.18, 0.10), (-0.22, 0.56), (-0.42, 0.56)), dark)
    g.add(polygon(x, y, (-0.98, -0.08), (-0.70, -0.08), (-0.86, 0.14), (-1.0, 0.14)), dark)
    reach = 0.08 + 0.26 * np.abs(np.cos(TURN * m.beat * 1.3))
    g.add(line(x, y, (0.93, -reach), (0.93, reach), 0.035), STEEL)
    g.add(ellipse(x, y, 0.90, 0.0, 0.07, 0.08), SUN)


def rocket(g: Figure, c: RGB, m: Moment) -> None:
    x, y, dark = g.x, g.y, mix(c, BLACK, 0.3)
    reach = 0.30 + 0.12 * np.sin(TURN * m.beat * 2)
    back = -0.62
    g.add(polygon(x, y, (back, -0.20), (back, 0.20), (back - 0.16 - reach, 0.0), r=0.02), FLAME, 0)
    g.add(polygon(x, y, (back, -0.11), (back, 0.11), (back - 0.10 - 0.5 * reach, 0.0)), SUN, 0)
    for side in (-1, 1):
        fin = [(-0.86, side * 0.56), (-0.62, side * 0.56), (-0.14, side * 0.20), (-0.62, side * 0.16)]
        g.add(polygon(x, y, *(fin if side < 0 else fin[::-1])), dark)
    hull = np.maximum(ellipse(x, y, 0.05, 0.0, 0.88, 0.33), -0.62 - x)
    g.add(hull, WHITE)
    g.add(np.maximum(hull, 0.40 - x), c)
    g.add(np.maximum(hull, x + 0.14), c)
    g.add(circle(x, y, 0.14, 0.0, 0.155), dark)
    g.add(circle(x, y, 0.14, 0.0, 0.105), GLASS)
    g.add(box(x, y, -0.62, 0.0, 0.05, 0.16, 0.02), STEEL)


def fish(g: Figure, c: RGB, m: Moment) -> None:
    sway = np.sin(TURN * (m.beat + 0.15 * g.x))
    x, y = g.x, g.y + 0.10 * sway * np.clip(0.5 - g.x, 0, 2)
    dark, pale = mix(c, BLACK, 0.3), mix(c, WHITE, 0.6)
    g.add(polygon(x, y, (-0.40, -0.04), (-0.40, 0.04), (-0.98, 0.42), (-0.82, 0.0), r=0.02), dark)
    g.add(polygon(x, y, (-0.40, 0.04), (-0.82, 0.0), (-0.98, -0.42), (-0.40, -0.04), r=0.02), dark)
    g.add(polygon(x, y, (-0.30, -0.58), (0.06, -0.56), (0.40, -0.26), (-0.36, -0.22), r=0.03), dark)
    g.add(polygon(x, y, (-0.16, 0.30), (0.22, 0.30), (-0.02, 0.58), (-0.24, 0.52), r=0.02), dark)
    body = ellipse(x, y, 0.20, 0.0, 0.76, 0.42)
    g.add(body, c)
    g.add(np.maximum(body, 0.16 - y), pale)
    for cx in (0.14, -0.18):
        g.add(np.maximum(body, np.abs(x - cx - 0.10 * np.cos(y * 3)) - 0.055), WHITE)
    g.add(circle(x, y, 0.62, -0.10, 0.13), WHITE)
    g.add(circle(x, y, 0.66, -0.10, 0.07), BLACK)
    g.add(line(x, y, (0.80, 0.14), (0.92, 0.08), 0.025), dark)


def bird(g: Figure, c: RGB, m: Moment) -> None:
    x, y, dark = g.x, g.y, mix(c, BLACK, 0.28)
    flap = np.sin(TURN * m.beat)
    tip = -0.14 - 0.62 * flap
    far = [line(x, y, (0.12 - 0.14 * k, -0.06), (0.06 - 0.16 * k, tip * 0.9), 0.11) for k in range(2)]
    g.add(np.minimum.reduce(far), dark)
    g.add(polygon(x, y, (-0.98, 0.02), (-0.50, -0.06), (-0.40, 0.14), (-0.96, 0.26), r=0.02), dark)
    body = ellipse(x, y, -0.02, 0.06, 0.62, 0.29, -0.12)
    g.add(body, c)
    g.add(np.maximum(body, 0.14 - y), mix(c, WHITE, 0.7))
    g.add(polygon(x, y, (0.74, -0.20), (1.0, -0.06), (0.72, -0.02)), FLAME)
    g.add(circle(x, y, 0.56, -0.14, 0.25), c)
    g.add(circle(x, y, 0.63, -0.20, 0.09), WHITE)
    g.add(circle(x, y, 0.65, -0.20, 0.055), BLACK)
    feathers = [((0.16 - 0.16 * k, 0.02), (-0.14 - 0.20 * k, 0.04 + tip * (1.05 - 0.14 * k))) for k in range(3)]
    g.add(np.minimum.reduce([line(x, y, root, end, 0.12) for root, end in feathers]) - 0.02, dark)
    g.add(np.minimum.reduce([line(x, y, root, end, 0.09) for root, end in feathers]), mix(c, WHITE, 0.15))


def butterfly(g: Figure, c: RGB, m: Moment) -> None:
    x, y, dark, pale = g.x, g.y, mix(c, BLACK, 0.62), mix(c, WHITE, 0.6)
    spread = 0.80 + 0.20 * np.cos(TURN * m.beat)  # of the wings
    for side, tone in ((0.16, mix(c, BLACK, 0.25)), (-0.10, c)):
        u, v = x - side + 0.06, (y - 0.10) / spread
        upper, lower = ellipse(u, v, -0.16, -0.54, 0.58, 0.38, 0.95), ellipse(u, v, -0.46, 0.12, 0.40, 0.28, -0.30)
        g.add(np.minimum(upper, lower) * spread, dark)
        g.add((upper + 0.09) * spread, tone)
        g.add((lower + 0.08) * spread, mix(tone, WHITE, 0.25))
        g.add(circle(u, v, -0.30, -0.74, 0.12) * spread, pale)
        g.add(circle(u, v, -0.52, 0.14, 0.10) * spread, pale)
    g.add(ellipse(x, y, 0.16, 0.16, 0.40, 0.09, -0.50), BLACK)
    g.add(circle(x, y, 0.48, -0.06, 0.13), mix(BLACK, c, 0.25))
    g.add(line(x, y, (0.52, -0.14), (0.80, -0.46), 0.026), BLACK)
    g.add(line(x, y, (0.58, -0.08), (0.96, -0.26), 0.026), BLACK)


def helicopter(g: Figure, c: RGB, m: Moment) -> None:
    x, y, dark = g.x, g.y, mix(c, BLACK, 0.3)
    g.add(polygon(x, y, (-1.0, -0.44), (-0.84, -0.44), (-0.70, -0.10), (-0.92, -0.06)), dark)
    g.add(polygon(x, y, (-0.96, -0.18), (-0.20, -0.20), (-0.10, 0.12), (-0.96, -0.08), r=0.02), c)
    body = ellipse(x, y, 0.22, 0.02, 0.58, 0.36)
    g.add(body, c)
    g.add(np.maximum(body + 0.05, np.maximum(0.28 - x, y - 0.08)), GLASS)
    g.add(box(x, y, 0.04, -0.06, 0.13, 0.12, 0.03), GLASS)
    g.add(line(x, y, (-0.20, 0.52), (0.66, 0.52), 0.04), BLACK)
    for cx in (0.0, 0.42):
        g.add(line(x, y, (cx, 0.34), (cx, 0.50), 0.03), BLACK)
    g.add(box(x, y, 0.18, -0.42, 0.05, 0.10), BLACK)
    reach = 0.30 + 0.60 * np.abs(np.cos(TURN * m.beat * 1.3))
    g.add(line(x, y, (0.18 - reach, -0.52), (0.18 + reach, -0.52), 0.04), BLACK)
    px, py = 0.17 * np.cos(TURN * m.beat * 1.7), 0.17 * np.sin(TURN * m.beat * 1.7)
    g.add(line(x, y, (-0.90 - px, -0.22 - py), (-0.90 + px, -0.22 + py), 0.035), WHITE)


def submarine(g: Figure, c: RGB, m: Moment) -> None:
    x, y, dark = g.x, g.y, mix(c, BLACK, 0.35)
    g.add(line(x, y, (0.12, -0.40), (0.12, -0.78), 0.04), STEEL)
    g.add(line(x, y, (0.12, -0.78), (0.30, -0.78), 0.05), STEEL)
    g.add(polygon(x, y, (-0.20, -0.56), (0.28, -0.56), (0.40, -0.16), (-0.30, -0.16), r=0.03), mix(c, BLACK, 0.15))
    reach = 0.06 + 0.24 * np.abs(np.cos(TURN * m.beat))
    g.add(line(x, y, (-0.92, 0.06 - reach), (-0.92, 0.06 + reach), 0.05), SUN)
    g.add(polygon(x, y, (-0.86, -0.30), (-0.66, -0.30), (-0.50, 0.0), (-0.86, 0.04)), dark)
    hull = ellipse(x, y, 0.06, 0.08, 0.92, 0.36)
    g.add(hull, c)
    g.add(np.maximum(hull, 0.22 - y), dark)
    for cx in (-0.30, 0.08, 0.46):
        g.add(circle(x, y, cx, 0.04, 0.135), STEEL)
        g.add(circle(x, y, cx, 0.04, 0.09), GLASS)
    g.add(circle(x, y, 0.90, 0.08, 0.07), SUN, 0)


KINDS: dict[str, Kind] = {
    "car": Kind(car, 0.205, 0.55, 2.0),
    "train": Kind(train, 0.260, 0.54, 2.0),
    "sailing boat": Kind(boat, 0.220, 0.76, 1.2),
    "balloon": Kind(balloon, 0.200, 0.96, 1.2),
    "plane": Kind(plane, 0.220, 0.56, 3.0),
    "rocket": Kind(rocket, 0.220, 0.48, 3.0),
    "fish": Kind(fish, 0.190, 0.58, 2.4),
    "bird": Kind(bird, 0.200, 0.60, 2.6),
    "butterfly": Kind(butterfly, 0.190, 0.60, 2.6),
    "helicopter": Kind(helicopter, 0.215, 0.56, 3.0),
    "submarine": Kind(submarine, 0.220, 0.44, 2.4),
}
SUBJECTS = tuple(KINDS)


def draw(name: str, colour: RGB, x: NDArray, y: NDArray, unit: NDArray, moment: Moment):
    """Colours and coverage of a subject in its own coordinates; see Figure.paint."""
    figure = Figure(x, y, unit)
    KINDS[name].draw(figure, colour, moment)
    return figure.paint()
