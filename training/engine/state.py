"""The state of a run on disk, in the format of torch.distributed.checkpoint. A state is saved atomically.

    RUN/state/step-00000200/    the tensors by name, run.json, COMPLETE
    RUN/state/partial-...       a save in progress

A save writes and syncs a partial folder, renames it, and only then writes COMPLETE into it; older states are deleted
after that. Whenever a run is killed, the newest folder with COMPLETE therefore holds a complete state. Every process
writes a share of the tensors in a save and reads all of them in a load, so a run may resume with another number of
processes. Several machines need a shared folder.

torch stores the index of such a folder as a pickle: resume only runs that you trust.
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
    is_writer = not dist.is_initialized() or dist.get_rank() == 0
    if is_writer:
        _clear(folder)
        partial.mkdir(parents=True)
    _wait()
    writer = FileSystemWriter(partial, sync_files=True)
    with _no_single_process_warning():
        write_state(dict(tensors), storage_writer=writer, no_dist=not dist.is_initialized())
    if is_writer:
        _write(partial / RECORD, json.dumps({"step": step, **record}, indent=1))
        shutil.rmtree(target, ignore_errors=True)  # an incomplete state, or an earlier save of this step
        os.replace(partial, target)
        _sync(folder)
        _write(target / COMPLETE, "")
        _sync(target)
        for old in states(folder)[:-keep]:
            (old / COMPLETE).unlink()
            shutil.rmtree(old)
    _wait()


def states(folder: Path) -> list[Path]:
    """The complete states of a run, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{COMPLETE}"))


def record(state: Path) -> dict[str, Any]:
    """The record that was passed to `save`, and the step."""
    return json.loads((state / RECORD).read_text())


def names(state: Path) -> set[str]:
    """The names of the tensors in a state."""
    return set(FileSystemReader(state).read_metadata().state_dict_metadata)


def load(state: Path, tensors: Tensors) -> None:
    """Fill `tensors` in place from the entries with the same names."""
    with torch.no_grad(), _no_single_process_warning():
        read_state(dict(tensors), storage_reader=FileSystemReader(state), no_dist=True)


def _clear(folder: Path) -> None:
    """Delete the incomplete folders that a killed save left behind."""
    for path in folder.glob("partial-*"):
        shutil.rmtree(path)
    complete = set(states(folder))
    for path in folder.glob("step-*"):
        if path not in complete:
            shutil.rmtree(path)


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Flush the folder's entries to disk, on systems that support it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _no_single_process_warning() -> Iterator[None]:
    """Suppress the warning that torch emits for every save or load by a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        yield


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()
