"""Damaged training states: of the newest state, of all, and indices of earlier versions that contain code."""

import os
import pickle
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...training.engine import state
from .damage import changed_json, damaged, damaged_text
from .harness import MARKER, Case, Kind
from .naming import Named, named

TENSORS = {
    "counts": torch.arange(4),
    **{f"weights/{i}": torch.randn(16, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)},
}
IDENTITY = {"identity": {"train.seed": "0", "model": "a"}}


@cache
def _whole() -> Path:
    folder = Path(tempfile.mkdtemp())
    for step in (2, 4):
        state.save(folder, step, TENSORS, IDENTITY, keep=2)
    return folder


class Code:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def warm(folder: Path) -> Case:
    return Case(Path(shutil.copytree(_whole(), folder / "state")), "whole")


def make(rng: random.Random, folder: Path) -> Case:
    case = warm(folder)
    steps = sorted(case.path.iterdir())
    targets = steps if rng.random() < 0.3 else steps[-1:]
    label = rng.choice(("file", "file", "file", "json", "index", "missing"))
    for step in targets:
        if label == "index":
            for path in step.glob("tensors-*"):
                path.unlink()
            content = pickle.dumps(Code(folder / MARKER)) if rng.random() < 0.5 else damaged(pickle.dumps({}), rng)[0]
            (step / ".metadata").write_bytes(content)
            continue
        path = rng.choice(sorted(step.iterdir()))
        if label == "missing":
            path.unlink()
        elif label == "json" and path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            path.write_bytes(damaged_text(text, rng) if rng.random() < 0.5 else str(changed_json({}, rng)).encode())
        else:
            path.write_bytes(damaged(path.read_bytes(), rng)[0])
    return Case(case.path, f"{label} of {len(targets)}")


def _read(folder: Path) -> dict[str, Tensor] | None:
    newest = state.newest(folder)
    if newest is None:
        return None
    state.record(newest)
    tensors = {name: torch.zeros_like(value) for name, value in TENSORS.items() if name in state.names(newest)}
    state.load(newest, tensors)
    return tensors


def read(case: Case) -> object:
    return named(lambda: _read(case.path))


def is_right(_case: Case, value: object) -> bool:
    """All tensors, or none where no state has its mark any more."""
    return value is None or (
        isinstance(value, dict)
        and value.keys() == TENSORS.keys()
        and all(torch.equal(value[name], tensor) for name, tensor in TENSORS.items())
    )


KIND = Kind("states", make, read, is_right, (Named,), warm)
