"""Drawing with signed distances: a figure is a list of parts, each a distance field with a colour.

A figure has its own coordinates: it faces right, x and y run from about -1 to 1, y points down. Shapes: f frames,
p pixels along a side of the patch; distances are negative inside.
"""

import math

import numpy as np
from numpy.typing import NDArray

from .noise import Array

RGB = tuple[float, float, float]
WHITE, BLACK, GLASS = (0.97, 0.97, 0.95), (0.14, 0.13, 0.18), (0.72, 0.90, 0.98)
STEEL, WOOD, FLAME, SUN = (0.55, 0.58, 0.62), (0.50, 0.31, 0.16), (1.0, 0.62, 0.12), (1.0, 0.93, 0.55)
OUTLINE = 0.05  # width of the darker line around a figure, in the figure's units


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """`a` blended with a share of `b`."""
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def circle(x: NDArray, y: NDArray, cx: float, cy: float, r: float) -> NDArray:
    return np.hypot(x - cx, y - cy) - r


def ellipse(
    x: NDArray, y: NDArray, cx: float, cy: float, rx: float, ry: NDArray | float, angle: float = 0.0
) -> NDArray:
    """An approximate distance to an ellipse; `angle` is in radians, clockwise on the screen."""
    x, y = x - cx, y - cy
    if angle:
        c, s = math.cos(angle), math.sin(angle)
        x, y = c * x + s * y, c * y - s * x
    k = np.hypot(x / rx, y / ry)
    return (k - 1) * k / np.maximum(np.hypot(x / rx**2, y / ry**2), 1e-6)


def box(x: NDArray, y: NDArray, cx: float, cy: float, hx: float, hy: float, r: float = 0.0) -> NDArray:
    """A rectangle of half sizes hx, hy with corners rounded by r."""
    dx, dy = np.abs(x - cx) - (hx - r), np.abs(y - cy) - (hy - r)
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - r


def line(x: NDArray, y: NDArray, a: tuple, b: tuple, r: float) -> NDArray:
    """A stroke of radius r from a to b; the ends may differ from frame to frame."""
    ax, ay, bx, by = a[0], a[1], b[0] - a[0], b[1] - a[1]
    t = np.clip(((x - ax) * bx + (y - ay) * by) / (bx * bx + by * by + 1e-9), 0, 1)
    return np.hypot(x - ax - t * bx, y - ay - t * by) - r


def polygon(x: NDArray, y: NDArray, *points: tuple, r: float = 0.0) -> NDArray:
    """A convex polygon. Its corners, in clockwise order on the screen, may differ from frame to frame."""
    inside = None
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        ex, ey = bx - ax, by - ay
        d = ((x - ax) * ey - (y - ay) * ex) / np.sqrt(ex * ex + ey * ey + 1e-9)
        inside = d if inside is None else np.maximum(inside, d)
    assert inside is not None
    return inside - r


class Figure:
    """The parts of a figure. x, y (f, p, p): coordinates; unit (f, 1, 1): pixels per unit of the figure."""

    def __init__(self, x: NDArray, y: NDArray, unit: NDArray) -> None:
        self.x, self.y, self.unit = x, y, unit
        self.parts: list[tuple[NDArray, RGB, float]] = []

    def add(self, distance: NDArray, colour: RGB, light: float = 1.0) -> None:
        """Add a part on top of the others. light: 1 if it is lit from above, 0 if it emits light."""
        self.parts.append((distance, colour, light))

    def paint(self) -> tuple[Array, Array]:
        """Premultiplied colours (3, f, p, p) and coverage (f, p, p)."""
        shade = np.clip(1.10 - 0.30 * self.y, 0.72, 1.28).astype(np.float32)
        alpha = 0.8 * self._coverage(np.minimum.reduce([d for d, _, light in self.parts if light]) - OUTLINE)
        rgb = np.empty((3, *alpha.shape), np.float32)
        line = mix(self.parts[0][1], BLACK, 0.62)
        for i, value in enumerate(line):
            rgb[i] = alpha * np.float32(value)
        for distance, colour, light in self.parts:
            cover = self._coverage(distance)
            rest, lit = 1 - cover, cover * (shade if light else 1)
            for channel, value in zip(rgb, colour, strict=True):
                channel *= rest
                channel += lit * np.float32(value)
            alpha = alpha * rest + cover
        return np.minimum(rgb, alpha), alpha

    def _coverage(self, distance: NDArray) -> Array:
        return np.clip(0.5 - distance * self.unit, 0, 1).astype(np.float32)
