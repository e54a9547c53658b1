"""Damaged folders of render jobs: a finished job is harmed and rendered again, to the same video."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...rendering.errors import RenderError
from ...rendering.formats import check_format
from ...rendering.job import open_job
from ...rendering.loop import Output, Work, render
from .damage import changed_json, damaged, damaged_text
from .harness import Case, Kind

CLIPS, FRAMES, SIZE = 3, 2, 16
IDENTITY = {"seed": 1, "graph": {"model": "a"}}


def _sample(clip: int, take: int, before: dict[str, Tensor] | None, step: Callable[[float], None]):
    walk = torch.randn(FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(97 * clip + take))
    step(1.0)
    latents = walk.cumsum(0) * 0.3 + (0 if before is None else before["end"])
    return latents, {"end": latents[-1].clone()}


def _decode(latents: Tensor) -> Iterator[np.ndarray]:
    yield (latents.sigmoid() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _render(root: Path) -> bytes:
    output = Output(check_format("h264-mp4", SIZE, SIZE), Fraction(8), FRAMES, {})
    with open_job(root, "job", IDENTITY) as (job, _):
        return render(job, CLIPS, Work(_sample, _decode), output).read_bytes()


@cache
def _whole() -> tuple[Path, bytes]:
    root = Path(tempfile.mkdtemp())
    return root, _render(root)


def warm(folder: Path) -> Case:
    return Case(Path(shutil.copytree(_whole()[0], folder / "jobs")), "whole")


def make(rng: random.Random, folder: Path) -> Case:
    root = warm(folder).path
    (job,) = root.iterdir()
    files = sorted(path for path in job.rglob("*") if path.is_file())
    label = rng.choice(("bytes", "bytes", "json", "json", "missing", "folder", "swap", "extra", "neighbour"))
    path = rng.choice(files)
    if label == "bytes":
        path.write_bytes(damaged(path.read_bytes(), rng)[0])
    elif label == "json":
        path = rng.choice([file for file in files if file.suffix == ".json"])
        text = path.read_text(encoding="utf-8")
        path.write_bytes(damaged_text(text, rng) if rng.random() < 0.5 else str(changed_json({"a": 1}, rng)).encode())
    elif label == "missing":
        path.unlink()
    elif label == "folder":
        path.unlink()
        path.mkdir()
    elif label == "swap":
        other = rng.choice(files)
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif label == "extra":
        (job / "clips" / rng.choice(("x", "00000", "99999999999", "0001a"))).mkdir(exist_ok=True)
        (job / "clips" / "00002" / ".state.safetensors.1.partial").write_bytes(b"x")
    else:
        shutil.copytree(job, root / f"job-{'0' * 12}")
        (root / f"job-{'0' * 12}" / "manifest.json").write_bytes(damaged_text("{}", rng))
        shutil.rmtree(job)
    return Case(root, f"{label} {path.name}")


def read(case: Case) -> object:
    return _render(case.path)


def is_right(_case: Case, value: object) -> bool:
    return value == _whole()[1]


KIND = Kind("jobs", make, read, is_right, (RenderError,), warm)
