"""Shared code of the ablations: held-out prompts, trainings in separate processes, intervals."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from ...evaluation.scores.statistics import Interval, bootstrap
from ..plans.errors import ConfigError

PACKAGE = (__package__ or "").rpartition(".")[0]  # package of the command line, under any name
CHUNK = 5  # clips per job
SPLITS = {"test": 0, "validation": 5000}  # the first held-out prompt; weights of losses are chosen on "validation"


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder of latents, which `make` fills unless it is complete; the shards of an interrupted run are deleted."""
    if not (folder / "done").exists():
        for partial in folder.glob("*.safetensors"):  # encoding takes only minutes, so it starts again
            partial.unlink()
        make(folder)
        (folder / "done").touch()
    return folder


def run_training(config: str, out: Path, latents: Path, changes: Sequence[str], processes: int) -> None:
    """Run the trainer as a separate command. Raises ConfigError when it fails."""
    command = [sys.executable, "-m", PACKAGE, "train", config, "--latents", str(latents)]
    command += ["--out", str(out), "--processes", str(processes)]
    options = [text for change in changes for text in ("--set", change)]
    status = subprocess.run([*command, *options], check=False).returncode
    if status:
        raise ConfigError(f"the training of {out.name} ended with status {status}; see its messages above")


def shares(split: str, prompts: int) -> list[tuple[int, int]]:
    """The first prompt and the number of prompts of each job; together they cover the first `prompts` of a split."""
    start = SPLITS[split]
    stop = start + prompts
    return [(first, min(CHUNK, stop - first)) for first in range(start, stop, CHUNK)]


def command() -> list[str]:
    """The command line of this process, for reports."""
    return ["python3 scripts/dev.py train", *sys.argv[1:]]


def intervals(names: Iterable[str], values: Sequence[Sequence[float]]) -> dict[str, Interval]:
    """Bootstrap intervals of the means of the columns; NaN values are ignored."""
    table = torch.tensor(values, dtype=torch.float64)
    return {
        name: bootstrap(lambda rows, column=column: column[rows].nanmean().item(), len(column))
        for name, column in zip(names, table.T, strict=True)
    }
