"""Damaged videos, read as the nodes, the training and the evaluation read them."""

import random
import tempfile
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...rendering import reader
from ...rendering.formats import FORMATS
from ...rendering.segments import segment_writer
from ...training.data import footage, videos
from .damage import damaged
from .harness import Case, Kind
from .naming import Named, named

FRAMES, SIZE = 12, 32
NAMES = {"h264-mp4": ".mp4", "ffv1-mkv": ".mkv"}


@cache
def _whole(kind: str) -> bytes:
    pictures = np.random.default_rng(0).integers(0, 255, (FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    path = Path(tempfile.mkdtemp()) / f"video{NAMES[kind]}"
    with segment_writer(path, FORMATS[kind], Fraction(8)) as writer:
        writer.write(pictures)
    return path.read_bytes()


def _node(path: Path) -> list[Tensor]:
    return list(reader.frames(path))


def _training(path: Path) -> list[Tensor]:
    return [frame for clip in videos.clips(path, frames=4, fps=8, size=16) for frame in clip]


def _evaluation(path: Path) -> list[Tensor]:
    return list(footage.first_frames(footage.Video(path.stem, path), 8))


READERS: tuple[Callable[[Path], list[Tensor]], ...] = (_node, _training, _evaluation)


def warm(folder: Path) -> Case:
    path = folder / "video.mp4"
    path.write_bytes(_whole("h264-mp4"))
    for read_frames in READERS:
        read_frames(path)
    return Case(path, "whole", 0)


def make(rng: random.Random, folder: Path) -> Case:
    kind = rng.choice(sorted(NAMES))
    content, label = damaged(_whole(kind), rng)
    path = folder / f"video{NAMES[kind]}"
    path.write_bytes(content)
    return Case(path, f"{kind}: {label}", rng.randrange(len(READERS)))


def read(case: Case) -> object:
    assert isinstance(case.expected, int)
    read_frames = READERS[case.expected]
    return named(lambda: read_frames(case.path))


def is_right(_case: Case, value: object) -> bool:
    """Whole frames, all of one size and finite: what a damaged picture shows cannot be known."""
    assert isinstance(value, list)
    return len({frame.shape for frame in value}) <= 1 and all(bool(torch.isfinite(f.float()).all()) for f in value)


KIND = Kind("videos", make, read, is_right, (Named,), warm)
