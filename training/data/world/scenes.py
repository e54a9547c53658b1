"""The interface of the world "scenes": the functions of `worlds.World`."""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from . import render as drawing
from .captions import AFLOAT, COLOUR_WORDS, NOUNS, PLACES, caption, vocabulary, wording
from .clips import GROUNDS, SIZES, Clip, clip, held_out, is_held_out
from .motion import CAMERAS, MOTIONS, SPEEDS, poses
from .render import mask
from .subjects import COLOURS, KINDS, SUBJECTS

__all__ = [
    "CLASSES",
    "NAME",
    "attributes",
    "caption",
    "clip",
    "held_out",
    "is_held_out",
    "mask",
    "phrases",
    "position",
    "render",
    "visible",
    "vocabulary",
    "wording",
]

NAME = "scenes"
CLASSES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SUBJECTS,
    "background": GROUNDS,
    "motion": MOTIONS,
    "speed": SPEEDS,
    "size": tuple(SIZES),
    "camera": CAMERAS,
}
STYLES = ("plain", "glow")  # glow: the subject lights its surroundings in its colour
GLOW, GLOW_REACH = 1.6, 9  # strength; width of the light in pixels, for pictures of 64 pixels
TOO_FAR = 0.5  # a subject below this factor of its size counts as hard to recognise


def attributes(clip: Clip) -> dict[str, str]:
    """Attribute -> value, for every attribute in CLASSES."""
    return {
        "colour": clip.actor.colour,
        "shape": clip.actor.kind,
        "background": clip.ground,
        "motion": clip.motion,
        "speed": clip.speed,
        "size": clip.size,
        "camera": clip.camera,
    }


def phrases() -> dict[str, list[tuple[str, int]]]:
    """Attribute -> (phrase, index of its value in CLASSES), for the attributes that a caption expresses in nouns."""
    numbered = {
        "colour": (CLASSES["colour"], COLOUR_WORDS),
        "shape": (CLASSES["shape"], NOUNS),
        "background": (CLASSES["background"], PLACES | {"sea": (*PLACES["sea"], *AFLOAT)}),
    }
    return {
        name: [(phrase, i) for i, value in enumerate(values) for phrase in dict.fromkeys(synonyms[value])]
        for name, (values, synonyms) in numbered.items()
    }


def position(clip: Clip, t: float) -> tuple[float, float]:
    """Centre of the subject at a time, in image widths; y points down."""
    pose = poses(clip.actor.path, [t])
    return float(pose.x[0]), float(pose.y[0])


def visible(clip: Clip, times: Sequence[float]) -> list[float]:
    """Visible share of the subject's box, reduced where the subject is far away or fades."""
    pose, kind = poses(clip.actor.path, times), KINDS[clip.actor.kind]
    half = clip.actor.path.half * pose.scale
    shares = [_overlap(v, h) for v, h in ((pose.x, half), (pose.y, half * kind.bottom))]
    recognisable = np.clip(pose.scale / TOO_FAR - 0.5, 0, 1) * pose.opacity
    share = shares[0] * shares[1] * np.where(pose.scale < 2 * TOO_FAR, recognisable, pose.opacity)
    return np.clip(share, 0, 1).tolist()


def _overlap(centre: np.ndarray, half: np.ndarray) -> np.ndarray:
    return np.clip(np.minimum(centre + half, 1) - np.maximum(centre - half, 0), 0, None) / (2 * half)


def render(clip: Clip, times: Sequence[float], *, size: int = 64, style: str = "plain") -> Tensor:
    """Frames at the clip times: (f, 3, size, size) in 0..1. ValueError for a style that is not one of STYLES."""
    if style not in STYLES:
        raise ValueError(f"there is no style {style!r}; use one of {', '.join(STYLES)}")
    frames = drawing.render(clip, times, size=size)
    return _glow(frames, clip, times) if style == "glow" else frames


def _glow(frames: Tensor, clip: Clip, times: Sequence[float]) -> Tensor:
    size = frames.shape[-1]
    cover, width = mask(clip, times, size=size), 2 * (GLOW_REACH * size // 128) + 1
    light = cover
    for _ in range(2):
        light = F.avg_pool2d(light, width, 1, width // 2)
    share = (GLOW * light).clamp(max=0.8) * (1 - cover)
    colour = frames.new_tensor(COLOURS[clip.actor.colour]).view(1, 3, 1, 1)
    return frames + (colour - frames) * share
