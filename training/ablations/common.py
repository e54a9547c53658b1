"""What all ablations share: held-out prompts, trainings in processes of their own, intervals."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from ...evaluation.scores.statistics import Interval, bootstrap
from ..plans.errors import ConfigError

PACKAGE = (__package__ or "").rpartition(".")[0]  # of the command line, whatever it is called
CHUNK = 5  # clips of one job
SPLITS = {"test": 0, "validation": 5000}  # the first held-out prompt; weights of losses are chosen on "validation"


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder of latents, made unless it is whole; what a stopped run left of it is not used."""
    if not (folder / "done").exists():
        for partial in folder.glob("*.safetensors"):  # encoding takes minutes, and starts anew
            partial.unlink()
        make(folder)
        (folder / "done").touch()
    return folder


def run_training(config: str, out: Path, latents: Path, changes: Sequence[str], processes: int) -> None:
    """The trainer as a command of its own. ConfigError when it fails."""
    command = [sys.executable, "-m", PACKAGE, "train", config, "--latents", str(latents)]
    command += ["--out", str(out), "--processes", str(processes)]
    done = subprocess.run([*command, *(word for change in changes for word in ("--set", change))], check=False)
    if done.returncode:
        raise ConfigError(f"the training of {out.name} ended with status {done.returncode}; see its messages above")


def shares(split: str, prompts: int) -> list[tuple[int, int]]:
    """First prompt and number of prompts of each job that draws some of a split's first `prompts`."""
    begin = SPLITS[split]
    end = begin + prompts
    return [(first, min(CHUNK, end - first)) for first in range(begin, end, CHUNK)]


def command() -> list[str]:
    return ["python3 scripts/dev.py train", *sys.argv[1:]]


def intervals(names: Iterable[str], values: Sequence[Sequence[float]]) -> dict[str, Interval]:
    """Means of the columns, over the rows that have a number there."""
    told = torch.tensor(values, dtype=torch.float64)
    return {
        name: bootstrap(lambda drawn, column=column: column[drawn].nanmean().item(), len(column))
        for name, column in zip(names, told.T, strict=True)
    }
