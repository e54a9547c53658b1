"""The motion of a subject and of the camera, as functions of time.

Time is 0 at the first frame of a clip and 1 at its last; other values are allowed. With a resting camera, the subject
crosses the picture, leaves it and enters again on the other side. A following camera keeps the subject in view while
the ground moves past. Lengths are image widths, y points down. Shapes: f times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*DIRECTIONS, "circling", "nearer", "still")
SPEEDS = ("slow", "normal", "fast")
CAMERAS = ("resting", "following")
TRAVEL = {"slow": 0.30, "normal": 0.52, "fast": 0.80}  # distance per clip, in image widths
TURNS = {"slow": 0.35, "normal": 0.60, "fast": 0.95}  # turns per clip
APPROACH = {"slow": 0.35, "normal": 0.55, "fast": 0.85}  # share of the way from FAR to NEAR per clip
CIRCLE = (0.27, 0.20)  # half axes of the path of a circling subject, seen at an angle
FAR, NEAR = 0.32, 2.1  # factors of the size at the two ends of an approach
MARGIN = 1.12  # distance outside the border at which a subject changes to the other side, in half lengths
TILT = 0.95  # pitch of a rising or falling subject, in radians


@dataclass(frozen=True)
class Path:
    """The motion of one subject. `place`: its centre, the centre of its circle, or its offset while it approaches."""

    motion: str
    speed: str
    camera: str
    place: tuple[float, float]
    half: float  # half length of the subject
    phase: float
    facing: int  # 1 right, -1 left; used by motions that do not determine it
    pitches: bool  # whether its nose points along the motion
    height: float = 1.0  # half height, in half lengths

    @property
    def follows(self) -> tuple[bool, bool]:
        """Whether the camera follows in x and in y."""
        dx, dy = DIRECTIONS.get(self.motion, (0, 0)) if self.camera == "following" else (0, 0)
        return dx != 0, dy != 0


@dataclass(frozen=True)
class Poses:
    """One subject and the camera at f times."""

    x: NDArray
    y: NDArray
    scale: NDArray  # factor of the subject's size
    turn: NDArray  # from -1 (faces left) to 1 (faces right)
    pitch: NDArray  # radians, nose down
    opacity: NDArray
    way: NDArray  # distance since time 0, in image widths
    scroll: NDArray  # (f, 2): position of the camera in the world
    pan: NDArray  # (f, 2): movement of the camera since time 0


def poses(path: Path, times: Sequence[float]) -> Poses:
    t = np.asarray(times, np.float64)
    still = np.zeros_like(t)
    x, y = still + path.place[0], still + path.place[1]
    scale, turn, pitch, opacity, way = still + 1, still + path.facing, still, still + 1, still
    pan = np.stack([still, still], 1)
    if path.motion in DIRECTIONS:
        dx, dy = DIRECTIONS[path.motion]
        way = TRAVEL[path.speed] * t
        turn = still + (dx or path.facing)
        pitch = still + (dy * TILT if path.pitches else 0.0)
        if path.camera == "following":
            pan = np.stack([dx * way, dy * way], 1)
        elif dx:
            x = _round(path.phase, dx * way, MARGIN * path.half)
        else:
            y = _round(path.phase, dy * way, MARGIN * path.half * max(path.height, 0.8))
    elif path.motion == "circling":
        angle = 2 * np.pi * (path.phase + path.facing * TURNS[path.speed] * t)
        x, y = x + CIRCLE[0] * np.cos(angle), y + CIRCLE[1] * np.sin(angle)
        turn = np.clip(-path.facing * np.sin(angle) * 2.2, -1, 1)
        pitch = 0.6 * path.facing * np.cos(angle) * path.pitches
        scale = 1 + 0.18 * np.sin(angle)
        way = TURNS[path.speed] * t * 2 * np.pi * CIRCLE[0]
    elif path.motion == "nearer":
        share = (path.phase + APPROACH[path.speed] * t) % 1.0
        scale = FAR * (NEAR / FAR) ** share
        opacity = np.clip(np.minimum(share / 0.06, (1 - share) / 0.06), 0, 1)
        x, y = 0.5 + (x - 0.5) * scale, 0.42 + (y - 0.42) * scale
        way = TRAVEL[path.speed] * t
    return Poses(x, y, scale, turn, pitch, opacity, way, pan + np.array((40 * path.phase, 0.0)), pan)


def _round(phase: float, way: NDArray, margin: float) -> NDArray:
    """A coordinate that moves across the picture and a margin on both sides, and then starts again."""
    length = 1 + 2 * margin
    return (phase * length + way) % length - margin
