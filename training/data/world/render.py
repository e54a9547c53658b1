"""Frames and masks of a clip. A picture of 64 pixels is drawn at 128 texels, blurred slightly and reduced."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import land
from . import open as open_
from .clips import Actor, Clip
from .layers import Camera, Ground, cover_frames, ground_frames
from .motion import MARGIN, Poses, poses
from .noise import Array
from .subjects import COLOURS, KINDS, Moment, draw

GROUNDS: dict[str, Ground] = {
    "city": land.CITY,
    "sea": open_.SEA,
    "reef": open_.REEF,
    "desert": land.DESERT,
    "forest": land.FOREST,
    "snow": land.SNOW,
    "clouds": open_.CLOUDS,
    "meadow": land.MEADOW,
    "stars": open_.STARS,
}
SAMPLES = 2  # texels per pixel, along each axis
REACH = 1.35  # half side of a subject's patch, in half lengths of the subject
FARTHER = 0.5  # parallax of the second subject
LENS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # a blur of one texel, half a pixel


def render(clip: Clip, times: Sequence[float], *, size: int = 64) -> Tensor:
    """Frames at the clip times: (f, 3, size, size) in 0..1."""
    ground, unit = GROUNDS[clip.ground], size * SAMPLES
    first = poses(clip.actor.path, times)
    camera = Camera(first.scroll, np.asarray(times, np.float64), clip.actor.path.follows)
    frames = ground_frames(ground, camera, unit, clip.grain)
    if clip.second:
        other = poses(clip.second.path, times)
        draw_actor(frames, clip.second, _with_parallax(other, clip.second.path.half, first), ground, times)
    draw_actor(frames, clip.actor, first, ground, times)
    cover_frames(ground, camera, clip.grain, frames)
    return torch.from_numpy(_downsample(frames)).clamp(0, 1)


def mask(clip: Clip, times: Sequence[float], *, size: int = 64) -> Tensor:
    """Coverage of the subject, including hidden parts: (f, 1, size, size) in 0..1."""
    frames = np.zeros((len(times), 1, size * SAMPLES, size * SAMPLES), np.float32)
    draw_actor(frames, clip.actor, poses(clip.actor.path, times), None, times)
    return torch.from_numpy(_downsample(frames)).clamp(0, 1)


def draw_actor(frames: Array, actor: Actor, pose: Poses, ground: Ground | None, times: Sequence[float]) -> None:
    """Draw one subject into the frames (f, 3, h, w) or, without a ground, its coverage into (f, 1, h, w)."""
    unit = frames.shape[-1]
    half = actor.path.half * pose.scale * unit  # texels per unit of the figure
    reach = int(np.ceil(half.max() * REACH)) + 2
    corner = np.floor(np.stack([pose.x, pose.y], 1) * unit).astype(np.int64) - reach
    span = np.arange(2 * reach)
    dx = (corner[:, :1] + span + 0.5 - pose.x[:, None] * unit)[:, None, :]
    dy = (corner[:, 1:] + span + 0.5 - pose.y[:, None] * unit)[:, :, None]
    turn = np.where(np.abs(pose.turn) < 0.18, np.copysign(0.18, pose.turn), pose.turn)
    shape = (-1, 1, 1)
    dx = dx * np.sign(turn).reshape(shape)
    c, s = np.cos(pose.pitch).reshape(shape), np.sin(pose.pitch).reshape(shape)
    x = (c * dx + s * dy) / (half * np.abs(turn)).reshape(shape)
    y = (c * dy - s * dx) / half.reshape(shape)
    beat = (actor.path.phase * 7 + KINDS[actor.kind].beats * np.asarray(times)).reshape(shape)
    roll = (pose.way / actor.path.half).reshape(shape)
    moment = Moment(beat.astype(np.float32), roll.astype(np.float32))
    sharp = (half * np.sqrt(np.abs(turn))).reshape(shape).astype(np.float32)
    red, green, blue = (v + actor.tint for v in COLOURS[actor.colour])
    grid = x.astype(np.float32), y.astype(np.float32)
    colours, cover = draw(actor.kind, (red, green, blue), *grid, sharp, moment)
    fade = pose.opacity.reshape(shape).astype(np.float32)
    colours, cover = colours * fade, cover * fade
    if ground:
        colours = colours * np.array(ground.light, np.float32).reshape(3, 1, 1, 1)
    for i, (left, top) in enumerate(corner):
        _paste(frames[i], colours[:, i] if ground else cover[None, i], cover[i], int(left), int(top))


def _paste(frame: NDArray, colours: NDArray, cover: NDArray, left: int, top: int) -> None:
    size, side = frame.shape[-1], cover.shape[-1]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
    if x0 >= x1 or y0 >= y1:
        return
    patch = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    target = frame[:, y0:y1, x0:x1]
    target *= 1 - cover[patch]
    target += colours[:, patch[0], patch[1]]


def _with_parallax(other: Poses, half: float, first: Poses) -> Poses:
    """Move the second subject past a camera that follows the first, at a parallax of FARTHER, in a loop."""
    if not first.pan.any():
        return other
    margin, way = MARGIN * half, first.pan * FARTHER
    x, y = (
        (value + margin - way[:, i]) % (1 + 2 * margin) - margin if way[:, i].any() else value
        for i, value in enumerate((other.x, other.y))
    )
    return replace(other, x=x, y=y)


def _downsample(frames: Array) -> Array:
    """Blur the frames and average texels to pixels.

    The blur matters to the autoencoder, which has 4 numbers for 16 pixels: without it, detail near the pixel grid's
    limit took most of its capacity, and subjects were reconstructed worse.
    """
    frames = _blur(_blur(frames, 2), 3)
    f, c, h, w = frames.shape
    return frames.reshape(f, c, h // SAMPLES, SAMPLES, w // SAMPLES, SAMPLES).mean((3, 5))


def _blur(frames: Array, axis: int) -> Array:
    """Convolve along one axis with LENS; the border is repeated."""
    reach, size = len(LENS) // 2, frames.shape[axis]
    padded = np.pad(frames, [(reach, reach) if i == axis else (0, 0) for i in range(4)], mode="edge")
    parts = (np.take(padded, range(i, i + size), axis) * weight for i, weight in enumerate(LENS))
    return sum(parts, np.zeros_like(frames))
