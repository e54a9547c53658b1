"""The specification of a clip of the world "scenes", and the combinations that are held out of all training runs.

Clip `k` of seed `s` is a pure function of (s, k). Lengths are image widths. A clip is a random window of a longer
motion, so the position of its subject does not depend on the frame number.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from .motion import DIRECTIONS, MOTIONS, SPEEDS, Path
from .subjects import COLOURS, KINDS, SUBJECTS

GROUNDS = ("city", "sea", "reef", "desert", "forest", "snow", "clouds", "meadow", "stars")
ROADS = ("city", "desert", "forest", "snow", "meadow")
AIR = ("city", "sea", "desert", "forest", "snow", "clouds", "meadow", "stars")
# grounds of each subject; a ground that is listed twice is sampled twice as often
HABITATS: dict[str, tuple[str, ...]] = {
    "car": ROADS,
    "train": ROADS,
    "sailing boat": ("sea", "sea", "clouds", "stars"),
    "fish": ("reef", "reef", "reef", "sea", "clouds", "stars"),
    "submarine": ("reef", "reef", "sea"),
    "rocket": (*AIR, "stars"),
    "plane": (*AIR, "clouds"),
}
FLOOR = {  # y of wheels and keels
    "city": 0.86,
    "sea": 0.83,
    "desert": 0.87,
    "forest": 0.87,
    "snow": 0.88,
    "meadow": 0.87,
}
TALL = ("clouds", "stars")  # grounds in which the camera can follow up and down
SWIMS = {("sailing boat", "sea"), ("submarine", "sea")}
PITCHES = ("plane", "rocket", "fish", "bird", "butterfly", "submarine", "helicopter")
SIZES = {"small": (0.72, 0.82), "medium": (0.92, 1.06), "big": (1.16, 1.28)}  # factors of the subject's half length
FOLLOWED = 0.5  # share of following cameras, among the clips whose subject moves in a direction
SECOND = 0.10  # share of clips with a second subject
SECOND_SIZE = 0.55
EVALUATION, VALIDATION = 199_000, 198_000  # seeds of the prompts for evaluation, and for the choice of settings
HELD_OUT = 10  # one in ten combinations of colour, subject, ground and motion is never used in training


@dataclass(frozen=True)
class Actor:
    kind: str
    colour: str
    tint: float
    path: Path


@dataclass(frozen=True)
class Clip:
    """The attributes that a caption can mention, as words, and the other inputs of the picture, as numbers."""

    actor: Actor
    ground: str
    size: str
    grain: int  # seed of the ground
    second: Actor | None = None

    @property
    def motion(self) -> str:
        return self.actor.path.motion

    @property
    def speed(self) -> str:
        return self.actor.path.speed

    @property
    def camera(self) -> str:
        return self.actor.path.camera

    @property
    def combination(self) -> str:
        return f"{self.actor.colour}/{self.actor.kind}/{self.ground}/{self.motion}"

    @property
    def held_out(self) -> bool:
        return is_held_out(self.combination)


def is_held_out(combination: str) -> bool:
    return hashlib.sha256(f"scenes/{combination}".encode()).digest()[0] % HELD_OUT == 0


def motions_of(kind: str, ground: str) -> tuple[str, ...]:
    """The motions of a subject on a ground. Vehicles stay on their road, and boats on the water."""
    flat = kind in ("car", "train") or (kind, ground) in SWIMS
    return ("right", "left", "still") if flat else MOTIONS


def clip(seed: int, k: int, *, held_out: bool = False, second: bool = True) -> Clip:
    """Clip `k` of a seed. held_out: whether its combination is a held-out one. second: whether it may have a second
    subject."""
    rng = random.Random(f"scenes/{seed}/{k}/{held_out}")
    while True:
        sample = _sample(rng, second)
        if sample.held_out == held_out:
            return sample


def held_out(count: int, *, motions: tuple[str, ...] = MOTIONS, first: int = 0, seed: int = EVALUATION) -> list[Clip]:
    """Prompts for evaluations: clips with held-out combinations and without a second subject. Their motions alternate.

    seed: EVALUATION for final figures, VALIDATION for the choice of settings.
    """
    return list(islice(_alternating(motions, seed), first, first + count))


def _alternating(motions: tuple[str, ...], seed: int) -> Iterator[Clip]:
    k = number = 0
    while True:
        sample = clip(seed, k, held_out=True, second=False)
        k += 1
        if sample.motion == motions[number % len(motions)]:
            number += 1
            yield sample


def _sample(rng: random.Random, second: bool) -> Clip:
    kind = rng.choice(SUBJECTS)
    ground = rng.choice(HABITATS.get(kind, AIR))
    motion, speed, size = rng.choice(motions_of(kind, ground)), rng.choice(SPEEDS), rng.choice(tuple(SIZES))
    half = KINDS[kind].half * rng.uniform(*SIZES[size])
    follows = motion in ("right", "left") or (motion in DIRECTIONS and ground in TALL)
    path = Path(
        motion=motion,
        speed=speed,
        camera="following" if follows and rng.random() < FOLLOWED else "resting",
        place=_place(rng, kind, ground, motion, half),
        half=half,
        phase=rng.random(),
        facing=rng.choice((1, -1)),
        pitches=kind in PITCHES,
        height=KINDS[kind].bottom,
    )
    actor = Actor(kind, rng.choice(tuple(COLOURS)), rng.uniform(-0.03, 0.03), path)
    grain = rng.randrange(2**31)
    other = _second(rng, actor, ground) if second and rng.random() < SECOND else None
    return Clip(actor, ground, size, grain, other)


def _place(rng: random.Random, kind: str, ground: str, motion: str, half: float) -> tuple[float, float]:
    """The position of the subject, in the coordinates that its motion does not determine."""
    if motion == "circling":
        return rng.uniform(0.44, 0.56), rng.uniform(0.40, 0.50)
    if motion == "nearer":  # passes the camera on one side
        return rng.choice((0.22, 0.78)) + rng.uniform(-0.08, 0.08), rng.uniform(0.30, 0.62)
    x = rng.uniform(min(0.5, half + 0.02), max(0.5, 0.98 - half))
    if kind in ("car", "train") or (kind, ground) in SWIMS:
        keel = {"sailing boat": 0.05, "submarine": 0.03}.get(kind, 0.0)
        return x, FLOOR[ground] + keel - KINDS[kind].bottom * half + rng.uniform(-0.012, 0.012)
    return x, rng.uniform(0.24, 0.74 if ground in TALL else 0.60)


def _second(rng: random.Random, first: Actor, ground: str) -> Actor:
    """A small second subject of another kind and colour, at rest or passing by."""
    kinds = [k for k in SUBJECTS if k != first.kind and ground in HABITATS.get(k, AIR) and _floats(k, ground)]
    kind, colour = rng.choice(kinds), rng.choice([c for c in COLOURS if c != first.colour])
    half = KINDS[kind].half * SECOND_SIZE
    high = first.path.place[1] > 0.45
    y = rng.uniform(0.14, 0.26) if high else rng.uniform(0.62, 0.72)
    motion = rng.choice(("right", "left", "still"))
    place = (rng.uniform(0.15, 0.85), y)
    path = Path(motion, "slow", "resting", place, half, rng.random(), rng.choice((1, -1)), False)
    return Actor(kind, colour, 0.0, path)


def _floats(kind: str, ground: str) -> bool:
    return kind not in ("car", "train") and (kind, ground) not in SWIMS
