"""The layers of a ground, from back to front. Each is drawn once per clip as a strip that moves past the camera.

A layer is a function of world coordinates, so its grain moves with it, and a following camera never reaches its end.
Shapes: f frames, h and w texels of the supersampled picture; colours are (3, h, w), premultiplied in a strip.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .figure import RGB
from .noise import Array, dice, texture_at

Painted = tuple[NDArray, NDArray | float]  # colours (3, h, w) and coverage (h, w)
Draw = Callable[[NDArray, NDArray, int], Painted]  # from world coordinates x (w,), y (h,) in image widths, and a seed
Stir = Callable[[NDArray, NDArray, NDArray, float, int], None]  # changes a frame (3, h, w) in place: x, y, time, seed

GRAIN = 0.6  # strength of all grain


@dataclass(frozen=True)
class Layer:
    """parallax: its movement as a share of the camera's. drift: its own movement to the left, in widths per clip."""

    parallax: float
    draw: Draw
    drift: float = 0.0
    front: bool = False  # in front of the subject


@dataclass(frozen=True)
class Ground:
    """stir, veil: moving details behind and in front of the subject. light: factors for the colours of the subject."""

    layers: tuple[Layer, ...]
    stir: Stir | None = None
    veil: Stir | None = None
    light: RGB = (1.0, 1.0, 1.0)


def gradient(y: NDArray, *stops: tuple[float, RGB]) -> Array:
    """Colours that depend on the height: (3, h, 1)."""
    places, colours = [p for p, _ in stops], np.array([c for _, c in stops])
    return np.stack([np.interp(y, places, colours[:, i]) for i in range(3)]).astype(np.float32)[:, :, None]


def rgb(*colour: float) -> Array:
    """One colour, (3, 1, 1)."""
    return np.array(colour, np.float32).reshape(3, 1, 1)


def blend(a: NDArray, b: NDArray, share: NDArray | float) -> NDArray:
    return a + (b - a) * share


def below(line: NDArray, y: NDArray, soft: float = 1.0) -> Array:
    """Coverage (h, w) of the area below a line (w,). soft: width of the edge in texels."""
    return np.clip((y[:, None] - line) * (128 / soft) + 0.5, 0, 1).astype(np.float32)


def cell_hash(seed: int, rows: NDArray, columns: NDArray) -> Array:
    """(h, w): a random number in [0, 1) for each cell, from the rows (h,) and columns (w,) of the cells."""
    r0, c0 = rows.min(), columns.min()
    grid = dice(seed, np.arange(r0, rows.max() + 1)[:, None], np.arange(c0, columns.max() + 1)[None])
    return grid[(rows - r0)[:, None], (columns - c0)[None]]


def cells(v: NDArray, width: float) -> tuple[NDArray, NDArray]:
    """The index of the cell that holds each coordinate, and the position within the cell, 0 to 1."""
    number = np.floor(v / width).astype(np.int64)
    return number, (v / width - number).astype(np.float32)


def add_grain(colours: NDArray, x: NDArray, y: NDArray, seed: int, amount: float, kind: str = "grain") -> NDArray:
    return colours * (1 + GRAIN * amount * texture_at(kind, x, y, seed))


def flecks(
    x: NDArray, y: NDArray, seed: int, *, cell: float, size: float, share: float, soft: float = 1.0
) -> tuple[NDArray, Array]:
    """Round spots, at most one per cell: their coverage (h, w), and a random number in [0, 1) for each spot."""
    (column, u), (row, v) = cells(x, cell), cells(y, cell)
    margin = min(0.5, size / cell)
    cx = margin + (1 - 2 * margin) * cell_hash(seed, row, column)
    cy = margin + (1 - 2 * margin) * cell_hash(seed + 1, row, column)
    variation = cell_hash(seed + 2, row, column)
    distance = np.hypot(u[None] - cx, v[:, None] - cy) * cell
    present = cell_hash(seed + 3, row, column) < share
    return np.clip((size * (0.6 + 0.4 * variation) - distance) * (128 / soft) + 0.5, 0, 1) * present, variation


def overlay(frame: NDArray, colours: NDArray, cover: NDArray) -> None:
    frame += (colours - frame) * cover


@dataclass(frozen=True)
class Camera:
    """scroll: its position at each time, (f, 2), in image widths; moves: whether it can move in x and in y."""

    scroll: NDArray
    times: NDArray
    moves: tuple[bool, bool]


def draw_layer(layer: Layer, camera: Camera, unit: int, seed: int, frames: NDArray) -> None:
    """Draw the layer over the frames (f, 3, unit, unit), as the camera sees it."""
    way = camera.scroll * layer.parallax
    offsets = np.stack([way[:, 0] + layer.drift * camera.times, way[:, 1]], 1) * unit
    moves = np.array(
        [bool((camera.moves[0] and layer.parallax) or layer.drift), camera.moves[1] and layer.parallax > 0]
    )
    whole = np.floor(offsets).astype(np.int64)
    part = (offsets - whole).astype(np.float32) * moves  # a layer at rest is not interpolated
    first, last = whole.min(0), whole.max(0) + unit + moves
    x, y = ((np.arange(first[i], last[i]) + 0.5) / unit for i in range(2))
    colours, cover = layer.draw(x, y, seed)
    strip = np.empty((4, len(y), len(x)), np.float32)
    strip[:3], strip[3] = colours * cover, cover
    solid = isinstance(cover, float)
    for frame, (i, j), (u, v) in zip(frames, whole - first, part, strict=True):
        view = _shift(_shift(strip[:, j:, i:], float(v), 1), float(u), 2)[:, :unit, :unit]
        frame *= 0 if solid else 1 - view[3]
        frame += view[:3]


def _shift(strip: NDArray, part: float, axis: int) -> NDArray:
    """The strip, moved by a fraction of a texel along an axis."""
    if not part:
        return strip
    before, after = (strip[:, :-1], strip[:, 1:]) if axis == 1 else (strip[:, :, :-1], strip[:, :, 1:])
    return before * (1 - part) + after * part


def ground_frames(ground: Ground, camera: Camera, unit: int, seed: int) -> Array:
    """(f, 3, unit, unit): the frames with all layers behind the subject."""
    rests = not any(camera.moves) and not any(layer.drift for layer in ground.layers)
    single = Camera(camera.scroll[:1], camera.times[:1], camera.moves) if rests else camera
    frames = np.zeros((len(single.times), 3, unit, unit), np.float32)
    for number, layer in enumerate(ground.layers):
        if not layer.front:
            draw_layer(layer, single, unit, seed + 101 * number, frames)
    frames = np.repeat(frames, len(camera.times), 0) if rests else frames
    _stir(ground.stir, camera, seed + 7001, frames)
    return frames


def cover_frames(ground: Ground, camera: Camera, seed: int, frames: Array) -> None:
    """Draw the layers in front of the subject over the frames."""
    for number, layer in enumerate(ground.layers):
        if layer.front:
            draw_layer(layer, camera, frames.shape[-1], seed + 101 * number, frames)
    _stir(ground.veil, camera, seed + 7003, frames)


def _stir(stir: Stir | None, camera: Camera, seed: int, frames: NDArray) -> None:
    if stir:
        v = (np.arange(frames.shape[-1]) + 0.5) / frames.shape[-1]
        for frame, (sx, sy), t in zip(frames, camera.scroll, camera.times, strict=True):
            stir(frame, v + sx, v + sy, float(t), seed)
