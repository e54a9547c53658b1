"""The state of a run on disk: torch.distributed.checkpoint's files, there as a whole or not at all.

    RUN/state/step-00000200/    the tensors by name, run.json, COMPLETE
    RUN/state/partial-...       what a save writes into, before it gets its name

A save writes and syncs a partial folder, renames it, and only then writes COMPLETE into it; older states go after that.
So whenever a run is killed, the newest folder with COMPLETE is a whole state. Every process takes part in a save (each
writes a share of the tensors) and reads all of it in a load, so the number of processes may change in between. Several
machines need one folder that all of them see.

torch keeps the index of such a folder as a pickle: resume only runs that are your own.
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as read_state
from torch.distributed.checkpoint.state_dict_saver import save as write_state

COMPLETE = "COMPLETE"
RECORD = "run.json"
Tensors = Mapping[str, Tensor]


def save(folder: Path, step: int, tensors: Tensors, record: Mapping[str, Any], *, keep: int) -> None:
    """Write the state of `step` and keep the newest `keep` states. Every process calls it with the same tensors."""
    target, partial = folder / f"step-{step:08d}", folder / f"partial-step-{step:08d}"
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        _clear(folder)
        partial.mkdir(parents=True)
    _wait()
    writer = FileSystemWriter(partial, sync_files=True)
    with _alone_is_fine():
        write_state(dict(tensors), storage_writer=writer, no_dist=not dist.is_initialized())
    if first:
        _write(partial / RECORD, json.dumps({"step": step, **record}, indent=1))
        shutil.rmtree(target, ignore_errors=True)  # a state without COMPLETE, or the same one
        os.replace(partial, target)
        _sync(folder)
        _write(target / COMPLETE, "")
        _sync(target)
        for old in states(folder)[:-keep]:
            (old / COMPLETE).unlink()
            shutil.rmtree(old)
    _wait()


def states(folder: Path) -> list[Path]:
    """The whole states of a run, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{COMPLETE}"))


def record(state: Path) -> dict[str, Any]:
    """What `save` was told about the run, and the step."""
    return json.loads((state / RECORD).read_text())


def names(state: Path) -> set[str]:
    """The names of the tensors in a state."""
    return set(FileSystemReader(state).read_metadata().state_dict_metadata)


def load(state: Path, tensors: Tensors) -> None:
    """Fill `tensors` in place from the entries of the same names."""
    with torch.no_grad(), _alone_is_fine():
        read_state(dict(tensors), storage_reader=FileSystemReader(state), no_dist=True)


def _clear(folder: Path) -> None:
    """Take away what a killed save left."""
    for path in folder.glob("partial-*"):
        shutil.rmtree(path)
    whole = set(states(folder))
    for path in folder.glob("step-*"):
        if path not in whole:
            shutil.rmtree(path)


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """The folder's own entries on the disk, where the system has such a thing."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _alone_is_fine() -> Iterator[None]:
    """torch warns of every save or load by one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        yield


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()
