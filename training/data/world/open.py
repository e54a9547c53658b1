"""Grounds without a road: the sea, a reef under water, clouds, stars."""

import numpy as np
from numpy.typing import NDArray

from .land import TURN, disc, halo
from .layers import Ground, Layer, Painted, add_grain, below, blend, cell_hash, cells, flecks, gradient, overlay, rgb
from .noise import dice, step, texture_at, waves

# the sea

HORIZON, WATERLINE = 0.50, 0.80


def _breeze(x: NDArray, y: NDArray, seed: int) -> Painted:
    sky = gradient(y, (0.0, (0.26, 0.56, 0.90)), (0.34, (0.62, 0.82, 0.96)), (HORIZON, (0.94, 0.92, 0.86)))
    sx, sy = 0.2 + 0.6 * dice(seed, 1), 0.12 + 0.16 * dice(seed, 2)
    sky = sky + 0.30 * halo(x, y, sx, sy, 0.15) * rgb(1.0, 0.9, 0.6)
    return blend(sky, rgb(1.0, 0.98, 0.86), disc(x, y, sx, sy, 0.06, 2)), 1.0


GREY_TO_WHITE = ((0.70, 0.78, 0.90), (1.0, 1.0, 1.0))


def cumulus(scale: float, density: float, low: float, high: float, tones: tuple = GREY_TO_WHITE):
    """Clouds that are lit from above. density: an offset; low, high: limits of their height, in image widths."""

    def draw(x: NDArray, y: NDArray, seed: int) -> Painted:
        u, v = x / scale, y * 1.7 / scale
        n = texture_at("cloud", u, v, seed)
        above = texture_at("cloud", u, v - 0.10, seed)
        band = step(low - 0.08, low + 0.04, y) * step(high + 0.08, high - 0.04, y) if high < 9 else np.ones(len(y))
        n = n + density - 3 * (1 - band)[:, None]
        light = np.clip(0.62 + 0.42 * (n - density - above), 0, 1)
        return add_grain(blend(rgb(*tones[0]), rgb(*tones[1]), light), x, y, seed, 0.02), step(0.55, 1.0, n)

    return draw


def _island(x: NDArray, y: NDArray, seed: int) -> Painted:
    line = HORIZON + 0.05 - 0.15 * np.clip(waves(x, seed, 0.9, 0.37) + 0.05, 0, 1) - 0.006 * waves(x, seed, 0.05, 0.03)
    tone = blend(rgb(0.42, 0.58, 0.60), rgb(0.34, 0.52, 0.42), step(HORIZON - 0.08, HORIZON, y)[:, None])
    return add_grain(tone, x, y, seed, 0.06, "fine"), below(line, y) * (y < HORIZON)[:, None]


def _water(frame: NDArray, x: NDArray, y: NDArray, t: float, seed: int) -> None:
    """The waves of the sea. Nearer rows move faster when the camera follows; x contains the position of the camera."""
    rows = y > HORIZON
    depth = (y[rows, None] - HORIZON) / (1 - HORIZON)  # 0 at the horizon, 1 at the lower border
    way, screen = x[0], x - x[0]
    near = 0.10 + 1.15 * depth
    place = (screen - 0.5) / (0.35 + 0.9 * depth) + way * near / (0.35 + 0.9 * depth)
    beat = TURN * t
    swell = np.sin(TURN * (place * 2.6 + 9.0 / (depth + 0.28)) + beat)
    swell += 0.7 * np.sin(TURN * (place * 4.3 - 13.0 / (depth + 0.30)) - 1.4 * beat + 2.0)
    swell += 0.5 * np.sin(TURN * (place * 8.1 + 31.0 / (depth + 0.5)) + 2.3 * beat)
    deep = gradient(y[rows], (HORIZON, (0.45, 0.70, 0.80)), (0.62, (0.12, 0.46, 0.66)), (1.0, (0.03, 0.22, 0.44)))
    sea = deep * (1 + 0.17 * swell * (0.4 + depth))
    row, column = np.floor(y[rows] * 128).astype(np.int64), np.floor(place * 128).astype(np.int64)
    foam = step(1.15, 1.75, swell + 0.3 * dice(seed, row[:, None] // 2, column // 3))
    frame[:, rows] = blend(sea, rgb(0.90, 0.97, 1.0), 0.75 * foam * (0.35 + 0.65 * depth))


def _front_water(frame: NDArray, x: NDArray, y: NDArray, t: float, seed: int) -> None:
    """The nearest wave, in front of the keel of a boat."""
    line = WATERLINE + 0.010 * waves(x - 0.12 * t, seed, 0.37, 0.16) + 0.006 * np.sin(TURN * t)
    cover = below(line, y) * step(WATERLINE + 0.15, WATERLINE + 0.02, y)[:, None]
    crest = np.exp(-(((y[:, None] - line) * 90 - 0.6) ** 2))
    tone = blend(gradient(y, (0.7, (0.10, 0.42, 0.62)), (1.0, (0.03, 0.24, 0.46))), rgb(0.86, 0.95, 1.0), 0.5 * crest)
    overlay(frame, tone, 0.85 * cover)


SEA = Ground(
    (
        Layer(0.0, _breeze),
        Layer(0.06, cumulus(0.9, 0.15, 0.05, 0.36), drift=0.02),
        Layer(0.15, _island),
    ),
    stir=_water,
    veil=_front_water,
)

# a reef under water


def _deep(x: NDArray, y: NDArray, seed: int) -> Painted:
    water = gradient(y, (0.0, (0.36, 0.80, 0.90)), (0.30, (0.10, 0.55, 0.78)), (1.0, (0.02, 0.20, 0.46)))
    return water + 0.015 * texture_at("cloud", x, y, seed), 1.0


def _rocks(height: float, rise: float, length: float, tones: tuple):
    def draw(x: NDArray, y: NDArray, seed: int) -> Painted:
        line = height - rise * np.abs(waves(x, seed, length, length * 0.39)) - 0.015 * waves(x, seed + 1, 0.07, 0.031)
        share = step(0.0, 0.16, y[:, None] - line)
        return add_grain(blend(rgb(*tones[0]), rgb(*tones[1]), share), x, y, seed, 0.14, "fine"), below(line, y)

    return draw


CORALS = ((0.95, 0.40, 0.45), (0.98, 0.66, 0.30), (0.80, 0.45, 0.85), (0.95, 0.82, 0.45))


def _corals(x: NDArray, y: NDArray, seed: int) -> Painted:
    number, u = cells(x, 0.21)
    size = 0.06 + 0.06 * dice(seed + 1, number)
    u = (u - 0.3 - 0.4 * dice(seed, number)) * 0.21 / size
    v = (y[:, None] - 0.88) / size
    fan = np.hypot(u, v + 0.5) - 0.95
    branches = np.abs(np.sin(6.5 * np.arctan2(u, -v + 0.2))) - 0.55 - 0.4 * (v > -0.35)
    d = np.maximum(fan, np.where(dice(seed + 2, number) < 0.6, branches * 0.35, -1.0))
    tone = np.array(CORALS, np.float32)[(dice(seed + 3, number) * len(CORALS)).astype(int)].T[:, None]
    tone = tone * rgb(0.75, 0.85, 1.0) * np.clip(0.95 - 0.35 * (v + 0.6), 0.5, 1.3)
    return add_grain(tone, x, y, seed, 0.08), np.clip(0.5 - d * size * 128, 0, 1) * (dice(seed + 4, number) < 0.8)


def _seabed(x: NDArray, y: NDArray, seed: int) -> Painted:
    line = 0.875 + 0.015 * waves(x, seed, 0.6, 0.25)
    ripple = np.sin(TURN * (y[:, None] * 30 + 0.7 * texture_at("fine", x * 0.4, y * 0.4, seed)))
    sand = rgb(0.72, 0.76, 0.62) * (1.0 + 0.07 * ripple - 1.2 * (y[:, None] - 0.88))
    return add_grain(sand, x, y, seed, 0.06), below(line, y)


def _beams(frame: NDArray, x: NDArray, y: NDArray, t: float, seed: int) -> None:
    """Swaying beams of light and swaying weed."""
    slant = x[None] + 0.45 * y[:, None]
    beams = waves(slant - 0.05 * np.sin(TURN * 0.5 * t), seed, 0.42, 0.23, 0.13)
    frame += 0.22 * np.clip(beams, 0, 1) * step(0.85, 0.0, y)[:, None] * rgb(0.8, 1.0, 0.95)
    number, u = cells(x, 0.115)
    tall = 0.14 + 0.24 * dice(seed + 1, number)
    v = np.clip((0.93 - y[:, None]) / tall, 0, 2)  # 0 at the root, 1 at the tip
    bend = (
        0.5 + 0.3 * (dice(seed, number) - 0.5) + 0.22 * v * np.sin(TURN * (0.8 * t + dice(seed + 2, number)) + 3.0 * v)
    )
    leaf = (
        np.clip((0.15 * np.sqrt(np.clip(1 - v, 0, 1)) - np.abs(u - bend)) * 0.115 * 128 + 0.5, 0, 1) * (v < 1) * (v > 0)
    )
    leaf = leaf * (dice(seed + 3, number) < 0.6)
    overlay(frame, blend(rgb(0.04, 0.34, 0.30), rgb(0.20, 0.62, 0.36), np.clip(v, 0, 1)), leaf)


def _bubbles(frame: NDArray, x: NDArray, y: NDArray, t: float, seed: int) -> None:
    cover, _ = flecks(x - 0.01 * np.sin(TURN * t), y + 0.30 * t, seed, cell=0.17, size=0.020, share=0.35)
    core, _ = flecks(x - 0.01 * np.sin(TURN * t), y + 0.30 * t, seed, cell=0.17, size=0.011, share=0.35)
    overlay(frame, rgb(0.85, 0.97, 1.0), np.clip(0.65 * cover - 0.35 * core, 0, 1))


REEF = Ground(
    (
        Layer(0.0, _deep),
        Layer(0.15, _rocks(0.80, 0.30, 0.80, ((0.12, 0.42, 0.60), (0.06, 0.30, 0.50)))),
        Layer(0.45, _rocks(0.88, 0.22, 0.60, ((0.14, 0.34, 0.46), (0.05, 0.20, 0.34)))),
        Layer(0.75, _corals),
        Layer(1.0, _seabed),
    ),
    stir=_beams,
    veil=_bubbles,
    light=(0.92, 0.98, 1.02),
)

# above and among the clouds


def _heaven(x: NDArray, y: NDArray, seed: int) -> Painted:
    sky = gradient(y, (0.0, (0.20, 0.46, 0.88)), (1.0, (0.66, 0.84, 0.98)))
    sx, sy = 0.2 + 0.6 * dice(seed, 1), 0.15 + 0.2 * dice(seed, 2)
    return sky + 0.30 * halo(x, y, sx, sy, 0.2) * rgb(1.0, 0.95, 0.7), 1.0


CLOUDS = Ground(
    (
        Layer(0.0, _heaven),
        Layer(0.15, cumulus(0.75, 0.10, -9, 99, ((0.62, 0.78, 0.95), (0.88, 0.95, 1.0))), drift=0.02),
        Layer(0.40, cumulus(1.2, -0.05, -9, 99, ((0.66, 0.76, 0.92), (1.0, 1.0, 1.0))), drift=0.03),
        Layer(1.0, cumulus(1.9, -0.25, -9, 99, ((0.72, 0.80, 0.92), (1.0, 0.99, 0.97))), drift=0.05),
    ),
    light=(1.02, 1.01, 1.0),
)

# among the stars

PLANETS = np.array(((0.85, 0.55, 0.35), (0.45, 0.65, 0.85), (0.80, 0.75, 0.55)), np.float32)


def _space(x: NDArray, y: NDArray, _seed: int) -> Painted:
    dark = gradient(y, (0.0, (0.03, 0.02, 0.10)), (1.0, (0.06, 0.03, 0.15)))
    return np.broadcast_to(dark, (3, len(y), len(x))), 1.0


def _nebula(x: NDArray, y: NDArray, seed: int) -> Painted:
    one, other = (np.clip(texture_at("cloud", x / 1.5, y / 1.5, seed + i), 0, 2.5) for i in range(2))
    colours = one * rgb(0.30, 0.06, 0.36) + other * rgb(0.03, 0.16, 0.34)
    return add_grain(colours, x, y, seed, 0.10), np.clip(0.5 * (one + other), 0, 0.85)


def _planet(x: NDArray, y: NDArray, seed: int) -> Painted:
    (column, u), (row, v) = cells(x, 1.15), cells(y, 1.15)
    size = 0.09 + 0.08 * cell_hash(seed + 3, row, column)
    a = (u[None] - 0.25 - 0.5 * cell_hash(seed + 1, row, column)) * 1.15 / size
    b = (v[:, None] - 0.25 - 0.5 * cell_hash(seed + 2, row, column)) * 1.15 / size
    far = np.hypot(a, b)
    ball = np.clip((1 - far) * size * 128 + 0.5, 0, 1)
    light = np.clip(0.30 + 0.75 * (0.65 * np.sqrt(np.clip(1 - far**2, 0, 1)) - 0.55 * a - 0.5 * b), 0.12, 1.15)
    tone = PLANETS[(cell_hash(seed + 4, row, column) * len(PLANETS)).astype(int)].transpose(2, 0, 1)
    bands = 1 + 0.16 * np.sin(9 * b + 1.5 * a) + 0.08 * texture_at("fine", x, y, seed)
    tilt = b + 0.35 * a
    ring = np.clip((0.22 - np.abs(np.hypot(a * 0.56, tilt * 2.2) - 1.0)) * size * 64 + 0.5, 0, 1)
    ring = ring * ((tilt > 0) | (far > 1)) * (cell_hash(seed + 5, row, column) < 0.6)
    return blend(tone * bands * light, rgb(0.85, 0.78, 0.68), 0.9 * ring), np.maximum(ball, 0.85 * ring)


def _twinkling(frame: NDArray, x: NDArray, y: NDArray, t: float, seed: int) -> None:
    sx, sy = x[0] - 0.5 / len(x), y[0] - 0.5 / len(y)  # the position of the camera
    for i, (near, cell, size) in enumerate(((0.12, 0.080, 0.010), (0.40, 0.14, 0.013), (0.90, 0.26, 0.019))):
        u, v = x - sx + sx * near, y - sy + sy * near
        cover, variation = flecks(u, v, seed + 10 * i, cell=cell, size=size, share=0.55, soft=1.5)
        glow = 0.70 + 0.30 * np.sin(TURN * (variation * 7 + t * (0.8 + variation)))
        colour = np.stack([0.95 + 0 * variation, 0.92 - 0.12 * variation, 0.75 + 0.3 * (variation > 0.5)])
        frame += cover * glow * colour * (0.95 - frame)


STARS = Ground(
    (Layer(0.0, _space), Layer(0.15, _nebula), Layer(0.25, _planet)), stir=_twinkling, light=(0.98, 0.97, 1.0)
)
