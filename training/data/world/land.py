"""Grounds with a road: a city at night, a desert, a forest, snow, a meadow at sunset."""

import numpy as np
from numpy.typing import NDArray

from .layers import Ground, Layer, Painted, add_grain, below, blend, cell_hash, cells, flecks, gradient, overlay, rgb
from .noise import dice, step, texture_at, waves

TURN = 2 * np.pi


def disc(x: NDArray, y: NDArray, cx: NDArray | float, cy: NDArray | float, r: float, soft: float = 1.0) -> NDArray:
    return np.clip((r - np.hypot(x[None] - cx, y[:, None] - cy)) * (128 / soft) + 0.5, 0, 1)


def halo(x: NDArray, y: NDArray, cx: NDArray | float, cy: NDArray | float, r: float) -> NDArray:
    return np.exp(-((x[None] - cx) ** 2 + (y[:, None] - cy) ** 2) / r**2)


# a city at night


def _night(x: NDArray, y: NDArray, seed: int) -> Painted:
    sky = gradient(y, (0.0, (0.04, 0.05, 0.20)), (0.42, (0.19, 0.16, 0.46)), (0.70, (0.60, 0.32, 0.50)))
    sky = sky + 0.012 * texture_at("cloud", x, y * 2, seed)
    stars, variation = flecks(x, y, seed, cell=0.11, size=0.010, share=0.6)
    sky = sky + stars * variation * 0.7 * step(0.5, 0.1, y)[:, None]
    mx, my = 0.16 + 0.68 * dice(seed, 5), 0.10 + 0.08 * dice(seed, 6)
    sky = sky + 0.25 * halo(x % 1.0, y, mx, my, 0.13)
    return blend(sky, rgb(0.98, 0.95, 0.82), disc(x, y, mx, my, 0.055)), 1.0


def _houses(width: float, low: float, high: float, tone: tuple, lit: float):
    def draw(x: NDArray, y: NDArray, seed: int) -> Painted:
        number, u = cells(x, width)
        top = 0.70 - low - (high - low) * dice(seed, number)
        cover = below(top + 0.012 * (dice(seed + 5, number) < 0.5) * (np.abs(u - 0.5) < 0.2), y)
        cover *= (u > 0.03)[None]
        tint = 0.75 + 0.5 * dice(seed + 1, number)
        wall = rgb(*tone) * tint * (0.85 + 0.3 * u) + 0.10 * step(0.35, 0.72, y)[:, None] * rgb(0.9, 0.5, 0.6)
        (row, fy), (column, fx) = cells(y, 0.052), cells(x, width / 5)
        pane = ((fx > 0.25) & (fx < 0.75))[None] & ((fy > 0.25) & (fy < 0.72))[:, None]
        pane = pane & ((y[:, None] > top + 0.02) & (np.abs(u - 0.5) < 0.41))
        on = cell_hash(seed + 2, row, column)
        glow = np.where(cell_hash(seed + 3, row, column) < 0.75, rgb(1.0, 0.80, 0.42), rgb(0.60, 0.85, 1.0))
        colours = blend(wall, glow, (pane & (on < lit)) * (0.65 + 0.35 * on / lit))
        return blend(colours, wall * 0.6, (pane & (on >= lit)) * 1.0), cover

    return draw


def _street(x: NDArray, y: NDArray, seed: int) -> Painted:
    asphalt = gradient(y, (0.70, (0.27, 0.25, 0.35)), (1.0, (0.16, 0.16, 0.24)))
    street = add_grain(np.broadcast_to(asphalt, (3, len(y), len(x))), x, y, seed, 0.16)
    shine = np.clip(texture_at("fine", x, y * 0.12, seed + 1), 0, 3) * step(1.0, 0.72, y)[:, None]
    street = street + 0.05 * shine * rgb(1.0, 0.75, 0.5)
    _, u = cells(x, 0.28)
    dash = ((u > 0.2) & (u < 0.75))[None] * np.clip((0.016 - np.abs(y - 0.90)) * 128, 0, 1)[:, None]
    street = blend(street, rgb(0.92, 0.90, 0.80), 0.85 * dash)
    kerb = np.clip((0.018 - np.abs(y - 0.715)) * 128, 0, 1)[:, None]
    street = blend(street, rgb(0.46, 0.44, 0.50), kerb * (0.8 + 0.2 * (cells(x, 0.07)[1] > 0.08)))
    return street, below(np.full(len(x), 0.70), y)


def _lamps(x: NDArray, y: NDArray, seed: int) -> Painted:
    number, u = cells(x, 0.62)
    u = (u - 0.3 - 0.4 * dice(seed, number)) * 0.62
    high = y[:, None]
    pole = np.clip((0.010 - np.abs(u)) * 128 + 0.5, 0, 1) * ((high > 0.36) & (high < 0.715))
    arm = np.clip((0.010 - np.abs(high - 0.36)) * 128 + 0.5, 0, 1) * ((u > -0.01) & (u < 0.08))
    lamp = np.clip((0.024 - np.hypot(u - 0.075, (high - 0.375) * 1.4)) * 128 + 0.5, 0, 1)
    glow = 0.55 * np.exp(-((u - 0.075) ** 2 + (high - 0.39) ** 2) / 0.0075)
    dark = np.maximum(pole, arm)
    cover = np.maximum(np.maximum(dark, lamp), glow)
    return np.where(
        lamp > 0.3, rgb(1.0, 0.97, 0.80), np.where(dark > glow, rgb(0.06, 0.06, 0.09), rgb(1.0, 0.82, 0.45))
    ), cover


CITY = Ground(
    (
        Layer(0.0, _night),
        Layer(0.12, _houses(0.115, 0.16, 0.40, (0.20, 0.18, 0.40), 0.34)),
        Layer(0.38, _houses(0.23, 0.10, 0.36, (0.13, 0.12, 0.28), 0.52)),
        Layer(1.0, _street),
        Layer(1.0, _lamps),
    ),
    light=(0.96, 0.94, 0.98),
)

# a desert


def _glare(x: NDArray, y: NDArray, seed: int) -> Painted:
    sky = gradient(y, (0.0, (0.32, 0.62, 0.90)), (0.40, (0.74, 0.86, 0.90)), (0.66, (0.99, 0.90, 0.70)))
    sx, sy = 0.2 + 0.6 * dice(seed, 1), 0.12 + 0.1 * dice(seed, 2)
    sky = sky + 0.35 * halo(x, y, sx, sy, 0.16) * rgb(1, 0.9, 0.5)
    return blend(sky, rgb(1.0, 0.98, 0.85), disc(x, y, sx, sy, 0.065, 2)), 1.0


def _mesas(x: NDArray, y: NDArray, seed: int) -> Painted:
    w = waves(x, seed, 0.55, 0.31)
    line = 0.60 - 0.17 * step(0.10, 0.22, w) - 0.07 * step(0.45, 0.52, w) - 0.01 * waves(x, seed + 1, 0.06, 0.04)
    bands = 0.92 + 0.10 * np.sin(TURN * (y * 22 + 0.3 * np.sin(y * 60)))[:, None]
    side = 0.92 + 0.14 * waves(x, seed + 2, 0.09, 0.05)
    return add_grain(rgb(0.80, 0.46, 0.33) * bands * side, x, y, seed, 0.04, "fine"), below(line, y)


def _dunes(height: float, rise: float, length: float, tone: tuple):
    def draw(x: NDArray, y: NDArray, seed: int) -> Painted:
        before, line, after = (
            height - rise * np.abs(waves(x + shift, seed, length, length * 0.43)) ** 0.8 for shift in (-0.008, 0, 0.008)
        )
        slope = (after - before) / 0.016
        ripples = np.sin(TURN * ((y[:, None] - line) * 34 + 0.8 * texture_at("fine", x * 0.35, y * 0.35, seed)))
        lit = 1.0 + np.clip(slope * 0.9, -0.22, 0.12) + 0.035 * ripples - 0.25 * (y[:, None] - height)
        return add_grain(rgb(*tone) * lit, x, y, seed, 0.05), below(line, y)

    return draw


def _sand_road(x: NDArray, y: NDArray, seed: int) -> Painted:
    line = 0.745 + 0.010 * waves(x, seed, 0.7, 0.3)
    ripple = np.sin(TURN * (y[:, None] * 26 + 0.25 * x * 8 + 0.8 * texture_at("fine", x * 0.3, y * 0.3, seed)))
    sand = rgb(0.93, 0.72, 0.44) * (1.02 + 0.05 * ripple - 0.35 * (y[:, None] - 0.8))
    track = step(0.07, 0.035, np.abs(y - 0.865))[:, None]
    sand = blend(sand, rgb(0.74, 0.55, 0.36) * (1 + 0.05 * ripple), 0.75 * track)
    return add_grain(sand, x, y, seed + 1, 0.07), below(line, y)


def _cacti(x: NDArray, y: NDArray, seed: int) -> Painted:
    number, u = cells(x, 0.46)
    size = 0.13 + 0.09 * dice(seed + 1, number)
    u = (u - 0.3 - 0.4 * dice(seed, number)) * 0.46 / size
    v = (y[:, None] - 0.765) / size  # 0 at the foot, -1 at the top
    side = np.where(dice(seed + 3, number) < 0.5, 1, -1) * u
    trunk = np.maximum(np.abs(u) - 0.14, np.maximum(-v - 0.95, v))
    arms = [
        np.minimum(
            np.maximum(np.abs(side - s * 0.40) - 0.10, np.maximum(-v - top, v + low)),
            np.maximum(np.abs(v + low) - 0.10, np.abs(side - s * 0.2) - 0.28),
        )
        for s, low, top in ((1, 0.36, 0.76), (-1, 0.52, 0.84))
    ]
    d = np.minimum(trunk, np.minimum(*arms)) * size
    present = dice(seed + 2, number) < 0.75
    ribs = 1 + 0.25 * np.sin(u * 34) - 0.5 * u
    return rgb(0.20, 0.46, 0.24) * ribs, np.clip(0.5 - d * 128, 0, 1) * present


def _blown_sand(frame: NDArray, x: NDArray, y: NDArray, t: float, seed: int) -> None:
    dust = np.clip(texture_at("streak", x - 0.55 * t, y, seed) - 0.9, 0, 1.2)
    overlay(frame, rgb(1.0, 0.88, 0.62), 0.30 * dust * step(0.62, 0.80, y)[:, None])


DESERT = Ground(
    (
        Layer(0.0, _glare),
        Layer(0.10, _mesas),
        Layer(0.28, _dunes(0.68, 0.13, 0.95, (0.90, 0.68, 0.44))),
        Layer(0.55, _dunes(0.75, 0.09, 0.70, (0.95, 0.74, 0.46))),
        Layer(0.85, _cacti),
        Layer(1.0, _sand_road),
    ),
    veil=_blown_sand,
    light=(1.03, 1.0, 0.95),
)

# a forest


def _haze(x: NDArray, y: NDArray, seed: int) -> Painted:
    sky = gradient(y, (0.0, (0.70, 0.88, 0.92)), (0.45, (0.88, 0.95, 0.80)), (0.75, (0.62, 0.78, 0.55)))
    return np.broadcast_to(sky, (3, len(y), len(x))) + 0.02 * texture_at("cloud", x, y, seed), 1.0


def _firs(width: float, foot: float, size: tuple, tone: tuple, snow: float = 0.0):
    """Two rows of firs that stand at height `foot`; `snow`: opacity of the snow on them."""

    def draw(x: NDArray, y: NDArray, seed: int) -> Painted:
        colours, cover = np.zeros((3, len(y), len(x)), np.float32), np.zeros((len(y), len(x)), np.float32)
        for row in range(2):
            number, u = cells(x + row * width / 2, width)
            variation = dice(seed + 10 * row, number)
            u = (u - 0.5 + 0.3 * (dice(seed + 10 * row + 1, number) - 0.5)) * width
            tall = size[0] + (size[1] - size[0]) * variation
            v = (y[:, None] - (foot - tall)) / tall  # 0 at the top, 1 at the foot
            tier = (v * 4.2) % 1.0
            half = width * 0.46 * (0.62 * v + 0.38 * v * tier)
            tree = np.clip((half - np.abs(u)) * 128 + 0.5, 0, 1) * (v > 0) * (v < 1)
            lit = 1.0 + 0.30 * tier - 0.22 * u / (0.5 * width) + 0.16 * (variation - 0.5)
            green = rgb(*tone) * lit
            green = blend(green, rgb(0.95, 0.97, 1.0) * (0.9 + 0.1 * tier), snow * step(0.75, 0.25, tier))
            colours, cover = blend(colours, green, tree), np.maximum(cover, tree)
        return add_grain(colours / np.maximum(cover, 1e-3), x, y, seed, 0.07), cover

    return draw


def _path(x: NDArray, y: NDArray, seed: int) -> Painted:
    line = 0.735 + 0.012 * waves(x, seed, 0.5, 0.21)
    grass = blend(rgb(0.26, 0.44, 0.16), rgb(0.16, 0.31, 0.12), step(0.74, 1.0, y)[:, None])
    grass = add_grain(grass, x, y, seed, 0.16, "fine")
    earth = add_grain(rgb(0.50, 0.37, 0.23) * (1.05 - 0.4 * (y[:, None] - 0.8)), x, y, seed + 1, 0.10)
    edge = 0.055 + 0.012 * waves(x, seed + 2, 0.13, 0.07)
    share = np.clip((edge - np.abs(y[:, None] - 0.868)) * 60 + 0.5, 0, 1)
    return add_grain(blend(grass, earth, share), x, y, seed + 3, 0.08), below(line, y)


def _tufts(tones: tuple, foot: float, tall: float, width: float):
    """Blades of grass at the lower border, in front of everything."""

    def draw(x: NDArray, y: NDArray, seed: int) -> Painted:
        number, u = cells(x, width)
        reach = tall * (0.35 + 0.65 * dice(seed, number)) * (1 + 0.5 * waves(x, seed + 3, 0.31, 0.17))
        v = (y[:, None] - (foot - reach)) / reach
        bend = 0.5 + 0.35 * (dice(seed + 1, number) - 0.5) * (1 - v)
        cover = np.clip((0.52 * v - np.abs(u - bend)) * width * 128 + 0.5, 0, 1) * (v > 0)
        tone = blend(rgb(*tones[0]), rgb(*tones[1]), dice(seed + 2, number))
        return tone * np.clip(1.25 - 0.4 * v, 0.8, 1.3), np.maximum(cover, below(np.full(len(x), foot), y))

    return draw


def _leaves(frame: NDArray, x: NDArray, y: NDArray, t: float, seed: int) -> None:
    sway = 0.02 * np.sin(TURN * t * 1.5)
    cover, variation = flecks(x - sway + 0.10 * t, y - 0.22 * t, seed, cell=0.24, size=0.017, share=0.45)
    overlay(frame, blend(rgb(0.95, 0.75, 0.20), rgb(0.80, 0.35, 0.12), variation), cover)


FOREST = Ground(
    (
        Layer(0.0, _haze),
        Layer(0.12, _firs(0.10, 0.68, (0.30, 0.42), (0.52, 0.70, 0.58))),
        Layer(0.32, _firs(0.16, 0.72, (0.42, 0.60), (0.28, 0.52, 0.38))),
        Layer(0.62, _firs(0.30, 0.77, (0.50, 0.78), (0.13, 0.36, 0.22))),
        Layer(1.0, _path),
        Layer(1.25, _tufts(((0.14, 0.34, 0.10), (0.30, 0.52, 0.16)), 0.995, 0.06, 0.022), front=True),
    ),
    veil=_leaves,
)

# snow


def _winter(x: NDArray, y: NDArray, seed: int) -> Painted:
    sky = gradient(y, (0.0, (0.50, 0.64, 0.84)), (0.65, (0.88, 0.92, 0.97)))
    return sky + 0.035 * texture_at("cloud", x, y * 1.5, seed), 1.0


def _peaks(x: NDArray, y: NDArray, seed: int) -> Painted:
    rise, side = np.zeros(len(x)), np.zeros(len(x))
    for row, width in enumerate((0.62, 0.47)):
        number, u = cells(x + 0.3 * row, width)
        high = (0.24 + 0.24 * dice(seed + row, number)) * (1 - 2 * np.abs(u - 0.5))
        side, rise = np.where(high > rise, np.sign(0.5 - u), side), np.maximum(rise, high)
    rough = texture_at("fine", x * 0.7, y * 0.7, seed)
    line = 0.68 - rise - 0.010 * waves(x, seed + 3, 0.10, 0.043)
    rock = rgb(0.46, 0.52, 0.66) * (1 + 0.16 * side + 0.06 * rough)
    cap = step(0.13, 0.09, y[:, None] - line + 0.035 * np.clip(rough, -1.2, 1.2))
    snow = np.where(side > 0, rgb(0.98, 0.99, 1.0), rgb(0.76, 0.83, 0.94))
    mist = step(0.40, 0.68, y)[:, None] * 0.7
    return blend(blend(rock, snow, cap), rgb(0.86, 0.90, 0.96), mist), below(line, y)


def _drifts(x: NDArray, y: NDArray, seed: int) -> Painted:
    line = 0.745 + 0.018 * waves(x, seed, 0.8, 0.33)
    hollows = texture_at("cloud", x * 0.8, y * 2.4, seed)
    snow = rgb(0.95, 0.97, 1.0) * (
        1.0 - 0.05 * np.clip(hollows, -1, 2) - 0.25 * (y[:, None] - 0.75) * rgb(1.3, 1.0, 0.6)
    )
    for track in (0.845, 0.885):
        rut = step(0.016, 0.006, np.abs(y - track))[:, None]
        snow = blend(snow, rgb(0.72, 0.79, 0.90), 0.8 * rut)
    return add_grain(snow, x, y, seed + 1, 0.022), below(line, y)


def _snowfall(frame: NDArray, x: NDArray, y: NDArray, t: float, seed: int) -> None:
    for i, (cell, size, fall) in enumerate(((0.09, 0.009, 0.35), (0.15, 0.014, 0.55))):
        sway = 0.015 * np.sin(TURN * (t + 0.3 * i))
        cover, _ = flecks(x - sway, y - fall * t, seed + 10 * i, cell=cell, size=size, share=0.55, soft=1.5)
        overlay(frame, rgb(1.0, 1.0, 1.0), 0.9 * cover)


SNOW = Ground(
    (
        Layer(0.0, _winter),
        Layer(0.10, _peaks),
        Layer(0.40, _firs(0.17, 0.75, (0.16, 0.30), (0.16, 0.32, 0.30), snow=0.75)),
        Layer(1.0, _drifts),
    ),
    veil=_snowfall,
    light=(1.0, 1.0, 1.02),
)

# a meadow at sunset


def _sunset(x: NDArray, y: NDArray, seed: int) -> Painted:
    sky = gradient(
        y, (0.0, (0.28, 0.16, 0.46)), (0.26, (0.72, 0.28, 0.48)), (0.48, (0.98, 0.52, 0.32)), (0.66, (1.0, 0.82, 0.44))
    )
    sx, sy = 0.22 + 0.56 * dice(seed, 1), 0.48 + 0.07 * dice(seed, 2)
    sky = sky + 0.30 * halo(x, y, sx, sy, 0.24) * rgb(1.0, 0.75, 0.3)
    sky = blend(sky, rgb(1.0, 0.95, 0.70), disc(x, y, sx, sy, 0.085, 2))
    streaks = np.clip(texture_at("streak", x * 0.8, y * 1.2, seed) - 0.5, 0, 1.2) * step(0.52, 0.30, y)[:, None]
    return blend(sky, rgb(0.98, 0.62, 0.55), 0.55 * streaks), 1.0


def _hills(height: float, rise: float, length: float, tones: tuple):
    def draw(x: NDArray, y: NDArray, seed: int) -> Painted:
        line = height - rise * waves(x, seed, length, length * 0.37)
        share = step(0.0, 0.14, y[:, None] - line)
        return add_grain(blend(rgb(*tones[0]), rgb(*tones[1]), share), x, y, seed, 0.06, "fine"), below(line, y)

    return draw


def _oaks(x: NDArray, y: NDArray, seed: int) -> Painted:
    number, u = cells(x, 0.38)
    size = 0.10 + 0.07 * dice(seed + 1, number)
    u = (u - 0.3 - 0.4 * dice(seed, number)) * 0.38 / size
    v = (y[:, None] - 0.72) / size
    crown = np.hypot(u, (v + 0.85) * 1.15) - 0.55 - 0.10 * texture_at("fine", x, y, seed)
    trunk = np.maximum(np.abs(u) - 0.07, np.maximum(-v - 0.6, v))
    present = dice(seed + 2, number) < 0.6
    tone = rgb(0.22, 0.18, 0.16) * (1.25 - 0.4 * (v + 0.85)) * rgb(1.0, 0.95, 0.7)
    return tone, np.clip(0.5 - np.minimum(crown, trunk) * size * 128, 0, 1) * present


def _grass(x: NDArray, y: NDArray, seed: int) -> Painted:
    line = 0.735 + 0.008 * waves(x, seed, 0.6, 0.23)
    field = blend(rgb(0.58, 0.52, 0.18), rgb(0.20, 0.30, 0.10), step(0.73, 1.0, y)[:, None])
    field = add_grain(field, x * 1.6, y * 0.45, seed, 0.16, "fine")
    flowers, variation = flecks(x, y, seed + 3, cell=0.075, size=0.013, share=0.5)
    track = step(0.055, 0.035, np.abs(y - 0.868))[:, None]
    field = blend(field, rgb(0.60, 0.42, 0.26), 0.75 * track)
    flowers = flowers * (1 - track) * step(0.76, 0.80, y)[:, None]
    blossom = np.where(
        variation < 0.35, rgb(1.0, 0.95, 0.90), np.where(variation < 0.7, rgb(1.0, 0.80, 0.25), rgb(0.95, 0.40, 0.45))
    )
    return blend(add_grain(field, x, y, seed + 1, 0.08), blossom, flowers), below(line, y)


MEADOW = Ground(
    (
        Layer(0.0, _sunset),
        Layer(0.12, _hills(0.64, 0.06, 0.8, ((0.55, 0.30, 0.42), (0.62, 0.36, 0.36)))),
        Layer(0.32, _hills(0.70, 0.04, 0.6, ((0.44, 0.34, 0.24), (0.46, 0.42, 0.18)))),
        Layer(0.45, _oaks),
        Layer(1.0, _grass),
        Layer(1.25, _tufts(((0.12, 0.22, 0.07), (0.40, 0.40, 0.12)), 0.995, 0.07, 0.020), front=True),
    ),
    light=(1.02, 0.96, 0.92),
)
