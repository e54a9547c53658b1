"""Captioned clips of one moving sprite, drawn from signed distance functions: the data set of the pocket model.

Sample `k` of seed `s` is a pure function of (s, k), so no sampler, worker or rank can lose or repeat a sample. Every
attribute in a caption is visible in a single frame: a moving sprite leaves a trail of fading puffs behind it, and a
faster sprite leaves more of them (`cue=False` draws the same clip without the trail, for ablations).

Shapes: f frames, h height, w width; images are float RGB in 0..1.
"""

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLOURS = {
    "red": (0.90, 0.08, 0.10),
    "green": (0.10, 0.75, 0.15),
    "blue": (0.10, 0.25, 0.95),
    "yellow": (0.98, 0.90, 0.10),
    "orange": (1.00, 0.50, 0.02),
    "purple": (0.55, 0.12, 0.78),
    "cyan": (0.10, 0.85, 0.92),
    "pink": (1.00, 0.50, 0.75),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
BACKGROUNDS = {
    "black": ("on a black background",),
    "white": ("on a white background",),
    "gray": ("on a gray background",),
    "night": ("in the night sky", "at night"),
    "field": ("over a green field", "over the grass"),
    "sunset": ("at sunset", "in the sunset"),
}
MOTIONS = {
    "right": ("moving right", "moving to the right"),
    "left": ("moving left", "moving to the left"),
    "up": ("moving up", "rising"),
    "down": ("moving down", "falling"),
    "circling": ("moving in a circle", "circling"),
    "still": ("standing still", "at rest"),
}
MOTION_WEIGHTS = (18, 18, 18, 18, 10, 18)
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}  # image axes: y points down
SPEEDS = {"slow": ("slowly",), "normal": ("",), "fast": ("quickly", "fast")}
TRAVEL = {"slow": 0.26, "normal": 0.38, "fast": 0.50}  # path length over a clip, in image widths
SIZES = {"small": ("small",), "medium": ("",), "big": ("big", "large")}
RADIUS = {"small": (0.14, 0.155), "medium": (0.17, 0.19), "big": (0.205, 0.23)}  # in image widths
PREFIXES = ("", "", "", "a picture of ", "a video of ")
SECOND_OBJECT = 0.08  # share of clips with another, small, resting sprite
EVALUATION = 99_000  # seed of the held-out prompts
HELD_OUT = 10  # one in ten combinations of colour, shape, background and motion is reserved for evaluation
PUFFS = {"slow": 1, "normal": 2, "fast": 3}
PUFF_RADIUS, PUFF_FIRST, PUFF_STEP = 0.28, 1.38, 0.62  # in sprite radii; distances are measured back from the centre
NAME = "sprites"
CLASSES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "background": tuple(BACKGROUNDS),
    "motion": tuple(MOTIONS),
    "speed": tuple(SPEEDS),
    "size": tuple(SIZES),
}
STYLES = ("plain", "glow")  # glow: the sprite tints the background around it with its own colour
GLOW, GLOW_REACH = 0.55, 0.8  # opacity of the glow at the outline; distance in sprite radii over which it falls to 1/e


@dataclass(frozen=True)
class Sprite:
    colour: str
    shape: str
    radius: float
    tint: float = 0.0


@dataclass(frozen=True)
class Clip:
    """One clip: the attributes that the caption names, and the numbers that it does not (in image widths)."""

    sprite: Sprite
    background: str
    motion: str
    speed: str
    size: str
    start: tuple[float, float]
    phase: float
    shade: float
    second: tuple[Sprite, tuple[float, float]] | None = None

    @property
    def combination(self) -> str:
        return f"{self.sprite.colour}/{self.sprite.shape}/{self.background}/{self.motion}"

    @property
    def held_out(self) -> bool:
        return is_held_out(self.combination)


def is_held_out(combination: str) -> bool:
    return hashlib.sha256(combination.encode()).digest()[0] % HELD_OUT == 0


def clip(seed: int, k: int, *, held_out: bool = False, second: bool = True) -> Clip:
    """Sample `k` of the training combinations, or of the held-out ones.

    second: whether a clip may show another, resting sprite.
    """
    rng = random.Random(f"clip/{seed}/{k}/{held_out}")
    while True:
        sample = _draw(rng, second)
        if sample.held_out == held_out:
            return sample


def held_out(count: int, *, motions: tuple[str, ...] = tuple(MOTIONS), first: int = 0) -> list[Clip]:
    """Evaluation prompts: clips of one sprite in combinations that are never trained on, cycling through `motions`."""
    clips, k = [], 0
    while len(clips) < first + count:
        sample = clip(EVALUATION, k, held_out=True, second=False)
        k += 1
        if sample.motion == motions[len(clips) % len(motions)]:
            clips.append(sample)
    return clips[first:]


def _draw(rng: random.Random, second: bool) -> Clip:
    motion = rng.choices(tuple(MOTIONS), MOTION_WEIGHTS)[0]
    size, speed = rng.choice(tuple(SIZES)), rng.choice(tuple(SPEEDS))
    r = rng.uniform(*RADIUS[size])
    sprite = Sprite(rng.choice(tuple(COLOURS)), rng.choice(SHAPES), r, rng.uniform(-0.04, 0.04))
    sample = Clip(
        sprite=sprite,
        background=rng.choice(tuple(BACKGROUNDS)),
        motion=motion,
        speed=speed,
        size=size,
        start=_start(rng, motion, TRAVEL[speed], r),
        phase=rng.random(),
        shade=rng.uniform(-0.04, 0.04),
    )
    if second and rng.random() < SECOND_OBJECT:
        object.__setattr__(sample, "second", _second(rng, sample))
    return sample


def _start(rng: random.Random, motion: str, travel: float, r: float) -> tuple[float, float]:
    """A starting position from which the whole path stays inside the image."""
    low, high = r + 0.01, 0.99 - r
    if motion == "circling":
        return rng.uniform(0.46, 0.54), rng.uniform(0.46, 0.54)  # the centre of the circle
    x, y = rng.uniform(low, high), rng.uniform(low, high)
    dx, dy = DIRECTIONS.get(motion, (0, 0))
    offset = rng.uniform(low, max(low, high - travel))
    if dx:
        x = offset if dx > 0 else 1 - offset
    if dy:
        y = offset if dy > 0 else 1 - offset
    return x, y


def _second(rng: random.Random, main: Clip) -> tuple[Sprite, tuple[float, float]]:
    """A small resting sprite in the corner farthest from the main sprite's path."""
    path = [position(main, t) for t in (0.0, 0.5, 1.0)]
    corners = [(x, y) for x in (0.13, 0.87) for y in (0.13, 0.87)]
    corner = max(corners, key=lambda c: min(math.dist(c, p) for p in path))
    colour = rng.choice([c for c in COLOURS if c != main.sprite.colour])
    return Sprite(colour, rng.choice(SHAPES), 0.10), corner


def position(clip: Clip, t: float) -> tuple[float, float]:
    """Centre of the sprite at clip time `t` (0 first frame, 1 last frame), in image widths."""
    x, y = clip.start
    if clip.motion == "circling":
        angle, reach = 2 * math.pi * (clip.phase + 2 * TRAVEL[clip.speed] * t), _circle(clip)
        return x + reach * math.cos(angle), y + reach * math.sin(angle)
    dx, dy = DIRECTIONS.get(clip.motion, (0, 0))
    return x + dx * TRAVEL[clip.speed] * t, y + dy * TRAVEL[clip.speed] * t


def _circle(clip: Clip) -> float:
    """Radius of the path of a circling sprite."""
    return 0.42 - clip.sprite.radius


def caption(clip: Clip, rng: random.Random | None = None, *, moves: bool = True) -> str:
    """The full caption; with `rng`, a random wording of it that may omit the motion or the background.

    moves: whether the motion may be mentioned; pass False for the caption of a single frame.
    """
    pick = (lambda options: rng.choice(options)) if rng else (lambda options: options[0])
    include = lambda probability: rng is None or rng.random() < probability  # noqa: E731
    parts = [pick(PREFIXES) + "a", pick(SIZES[clip.size]), clip.sprite.colour, clip.sprite.shape]
    if include(0.85) and moves:
        parts.append(pick(MOTIONS[clip.motion]))
        if clip.motion != "still":
            parts.append(pick(SPEEDS[clip.speed]))
    if include(0.9):
        parts.append(pick(BACKGROUNDS[clip.background]))
    if clip.second:
        parts.append(f"next to a {clip.second[0].colour} {clip.second[0].shape}")
    return " ".join(part for part in parts if part)


def attributes(clip: Clip) -> dict[str, str]:
    return {
        "colour": clip.sprite.colour,
        "shape": clip.sprite.shape,
        "background": clip.background,
        "motion": clip.motion,
        "speed": clip.speed,
        "size": clip.size,
    }


def wording(clip: Clip, rng: random.Random | None = None) -> tuple[str, dict[str, str]]:
    """A caption and the attributes that it mentions. `second` is the colour of the second sprite, or "none"."""
    text, values = caption(clip, rng), attributes(clip)
    names = ["colour", "shape", "size"]
    names += ["background"] if any(phrase in text for phrase in BACKGROUNDS[clip.background]) else []
    if any(phrase in text for phrase in MOTIONS[clip.motion]):
        names += ["motion"] if clip.motion == "still" else ["motion", "speed"]
    second = clip.second[0].colour if clip.second else "none"
    return text, {name: values[name] for name in names} | {"second": second}


def phrases() -> dict[str, list[tuple[str, int]]]:
    """The phrases that name a colour, a shape or a background, each with the index of its class."""
    return {
        "colour": [(colour, i) for i, colour in enumerate(COLOURS)],
        "shape": [(shape, i) for i, shape in enumerate(SHAPES)],
        "background": [(words, i) for i, texts in enumerate(BACKGROUNDS.values()) for words in texts],
    }


def visible(_clip: Clip, times: Sequence[float]) -> list[float]:
    """A sprite is always completely visible."""
    return [1.0] * len(times)


def vocabulary() -> list[str]:
    """Every word that a caption can contain."""
    lists = [*BACKGROUNDS.values(), *MOTIONS.values(), *SPEEDS.values(), *SIZES.values(), PREFIXES]
    words = {w for phrases in lists for phrase in phrases for w in phrase.split()}
    return sorted(words | set(COLOURS) | set(SHAPES) | {"next", "to", "a"})


def frame_times(frames: int) -> list[float]:
    return [i / (frames - 1) for i in range(frames)] if frames > 1 else [0.0]


def render(clip: Clip, times: Sequence[float], *, size: int = 64, cue: bool = True, style: str = "plain") -> Tensor:
    """Frames at the given clip times: (f, 3, h, w) in 0..1. Raises ValueError for a style that is not in STYLES."""
    if style not in STYLES:
        raise ValueError(f"there is no style {style!r}; use one of {', '.join(STYLES)}")
    places = [position(clip, t) for t in times]
    frames = _background(clip, size).expand(len(times), -1, -1, -1)
    if clip.second:
        sprite, place = clip.second
        frames = _paint(frames, sprite, [place] * len(times))
    if style == "glow":
        frames = _light_up(frames, clip.sprite, places)
    if cue and clip.motion != "still":
        frames = _paint_trail(frames, clip, times)
    return _paint(frames, clip.sprite, places).clamp(0, 1)


def mask(clip: Clip, times: Sequence[float], *, size: int = 64) -> Tensor:
    """Coverage of each pixel by the sprite, without its trail: (f, 1, h, w) in 0..1."""
    return _coverage(clip.sprite, [position(clip, t) for t in times], size)


def _paint_trail(frames: Tensor, clip: Clip, times: Sequence[float]) -> Tensor:
    puff = Sprite(clip.sprite.colour, "circle", clip.sprite.radius * PUFF_RADIUS, clip.sprite.tint)
    length = 4 * math.pi * _circle(clip) if clip.motion == "circling" else 1.0  # path per unit of TRAVEL
    for i in range(PUFFS[clip.speed]):
        lag = clip.sprite.radius * (PUFF_FIRST + i * PUFF_STEP) / (TRAVEL[clip.speed] * length)
        frames = _paint(frames, puff, [position(clip, t - lag) for t in times], 0.85 - 0.25 * i)
    return frames


def _axes(size: int) -> tuple[Tensor, Tensor]:
    v = (torch.arange(size) + 0.5) / size
    return v.view(1, 1, 1, size), v.view(1, 1, size, 1)


def _distance(sprite: Sprite, places: list[tuple[float, float]], size: int) -> Tensor:
    """Signed distance of each pixel to the outline: (f, 1, h, w) in radii of the sprite, negative inside."""
    gx, gy = _axes(size)
    px, py = torch.tensor(places).view(-1, 2, 1, 1, 1).unbind(1)
    return signed_distance(sprite.shape, (gx - px) / sprite.radius, (gy - py) / sprite.radius)


def _coverage(sprite: Sprite, places: list[tuple[float, float]], size: int) -> Tensor:
    return (0.5 - _distance(sprite, places, size) * sprite.radius * size).clamp(0, 1)


def _light_up(frames: Tensor, sprite: Sprite, places: list[tuple[float, float]]) -> Tensor:
    """Blend the sprite's colour over its surroundings, with an opacity that decays exponentially with the distance."""
    distance = _distance(sprite, places, frames.shape[-1]).clamp(min=0)
    share = GLOW * torch.exp(-distance / GLOW_REACH)
    return frames * (1 - share) + torch.tensor(COLOURS[sprite.colour]).view(1, 3, 1, 1) * share


def _paint(frames: Tensor, sprite: Sprite, places: list[tuple[float, float]], opacity: float = 1.0) -> Tensor:
    size = frames.shape[-1]
    cover = _coverage(sprite, places, size) * opacity
    _, gy = _axes(size)
    py = torch.tensor(places)[:, 1].view(-1, 1, 1, 1)
    light = 1.06 - 0.18 * ((gy - py) / sprite.radius).clamp(-1, 1)  # brighter at the top, so that it looks solid
    colour = (torch.tensor(COLOURS[sprite.colour]) + sprite.tint).view(1, 3, 1, 1)
    return frames * (1 - cover) + colour * light * cover


def signed_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the outline in units of the radius, negative inside; y points down."""
    if shape == "circle":
        return (x * x + y * y).sqrt() - 0.95
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.84
    if shape == "diamond":
        return (x.abs() * 1.25 + y.abs() - 1.08) / math.hypot(1.25, 1)
    if shape == "ring":
        return ((x * x + y * y).sqrt() - 0.68).abs() - 0.28
    if shape == "cross":
        long, short = 0.98, 0.36
        bar = torch.maximum(x.abs() - long, y.abs() - short)
        return torch.minimum(bar, torch.maximum(x.abs() - short, y.abs() - long))
    if shape == "triangle":
        return torch.maximum(y - 0.74, (x.abs() * 2 - (y + 1.05)) / math.hypot(2, 1))
    if shape == "star":
        return _star(x, y)
    if shape == "heart":
        return _heart(x, y)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def _star(x: Tensor, y: Tensor, outer: float = 1.12, inner: float = 0.50) -> Tensor:
    """Star with five points: fold the plane into one sector, then take the distance to its edge from tip to notch."""
    sector = 2 * math.pi / 5
    angle = (torch.atan2(x, -y) + sector / 2) % sector - sector / 2
    r = (x * x + y * y).sqrt()
    px, py = r * angle.abs().sin(), r * angle.cos()
    nx, ny = outer - inner * math.cos(sector / 2), inner * math.sin(sector / 2)
    return (px * nx + (py - outer) * ny) / math.hypot(nx, ny)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """Two discs on top of a wedge whose sides are tangent to them."""
    x, y = x.abs(), y + 0.30
    lobe = ((x - 0.46).square() + y.square()).sqrt() - 0.52
    wedge = torch.maximum((x * 1.15 + y - 1.10) / math.hypot(1.15, 1), -y - 0.02)
    return torch.minimum(lobe, wedge)


def _lerp(top: tuple[float, ...], bottom: tuple[float, ...], t: Tensor) -> Tensor:
    a, b = torch.tensor(top).view(1, 3, 1, 1), torch.tensor(bottom).view(1, 3, 1, 1)
    return a + (b - a) * t


def _background(clip: Clip, size: int) -> Tensor:
    """The background image: (1, 3, h, w)."""
    gx, gy = _axes(size)
    rows = gy.expand(1, 1, size, size)
    if clip.background == "night":
        sky = _lerp((0.02, 0.02, 0.12), (0.07, 0.07, 0.28), rows)
        rng = random.Random(f"stars/{clip.phase}")
        for _ in range(7):
            d2 = (gx - rng.random()).square() + (gy - rng.random()).square()
            sky = sky + 0.7 * torch.exp(-d2 * (0.7 * 64) ** 2)
        return sky
    if clip.background == "field":
        grass = ((rows - 0.62) * size * 0.5).sigmoid()
        sky = _lerp((0.60, 0.78, 0.93), (0.74, 0.86, 0.95), rows)
        return sky * (1 - grass) + _lerp((0.20, 0.38, 0.12), (0.30, 0.48, 0.16), rows) * grass + clip.shade * 0.5
    if clip.background == "sunset":
        return _lerp((0.24, 0.10, 0.34), (0.86, 0.50, 0.30), rows) + clip.shade * 0.5
    level = {"black": 0.03 + abs(clip.shade) * 0.5, "white": 0.97 - abs(clip.shade) * 0.5, "gray": 0.5 + clip.shade}
    return torch.full((1, 3, size, size), level[clip.background])
