"""The state of a run on disk, as safetensors files. A state is saved atomically, and read only if it is whole.

    RUN/state/step-00000200/    tensors-000.safetensors, ..., run.json, COMPLETE with the SHA-256 of each
    RUN/state/partial-...       a save in progress

A save writes and syncs a partial folder, renames it, and only then writes COMPLETE into it; older states are deleted
after that. Whenever a run is killed, the newest folder with COMPLETE therefore holds a complete state. Every process
writes a share of the tensors in a save and reads all of them in a load, so a run may resume with another number of
processes. Several machines need a shared folder. A state whose files have changed since then is passed over with a
warning, and the one before it is used.

States of earlier versions have the format of torch.distributed.checkpoint. They have no checksums, and their index is a
pickle, of which only the classes of that format are read.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...model_patches.files import flush_folder, read_json, replacing, write_text
from ..plans.errors import InputError
from . import old_state

log = logging.getLogger(__name__)

COMPLETE = "COMPLETE"
RECORD = "run.json"
Tensors = Mapping[str, Tensor]


class StateError(InputError):
    """A state cannot be read, or not be written."""


def save(folder: Path, step: int, tensors: Tensors, record: Mapping[str, Any], *, keep: int) -> None:
    """Write the state of `step` and keep the newest `keep` states. Every process calls it with the same tensors.

    StateError when the disk is full or not writable; the states before it are then intact.
    """
    try:
        _save(folder, step, tensors, record, keep)
    except (OSError, SafetensorError) as error:
        raise StateError(
            f"the state of step {step} could not be written into {folder} ({error}); the states before it are intact: "
            "free some space, and run the same command again to resume"
        ) from error


def _save(folder: Path, step: int, tensors: Tensors, record: Mapping[str, Any], keep: int) -> None:
    target, partial = folder / f"step-{step:08d}", folder / f"partial-step-{step:08d}"
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if rank == 0:
        _clear(folder)
        partial.mkdir(parents=True)
    _wait()
    share = {name: tensors[name] for name in sorted(tensors)[rank::world]}
    path = partial / f"tensors-{rank:03d}.safetensors"
    with replacing(path) as part:
        save_file(_separate(share), part)
    _wait()
    if rank == 0:
        write_text(json.dumps({"step": step, **record}, indent=1), partial / RECORD)
        sums = {path.name: _sum(path) for path in sorted(partial.iterdir())}
        shutil.rmtree(target, ignore_errors=True)  # an incomplete state, or an earlier save of this step
        os.replace(partial, target)
        flush_folder(folder)
        write_text(json.dumps(sums, indent=1), target / COMPLETE)
        for old in _complete(folder)[:-keep]:
            (old / COMPLETE).unlink()
            shutil.rmtree(old)
    _wait()


def _separate(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors on the CPU. Those that share memory are copied, because a file has each of them on its own."""
    pointers, separate = set(), {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        separate[name] = value.clone() if value.data_ptr() in pointers else value
        pointers.add(value.data_ptr())
    return separate


def states(folder: Path) -> list[Path]:
    """The whole states of a run, oldest first. A damaged one is named in a warning and is not among them."""
    whole = []
    for state in _complete(folder):
        if fault := fault_of(state):
            log.warning("%s is damaged (%s) and is not used", state, fault)
        else:
            whole.append(state)
    return whole


def newest(folder: Path) -> Path | None:
    """The newest whole state; None when there is none at all. StateError when all states are damaged."""
    whole = states(folder)
    if not whole and _complete(folder):
        raise StateError(
            f"every state in {folder} is damaged; delete that folder, and the run starts from the beginning"
        )
    return whole[-1] if whole else None


def fault_of(state: Path) -> str:
    """What is wrong with the files of a state; "" for a whole one."""
    try:
        if old_state.is_old(state):
            old_state.names(state)
            record(state)
            return ""
        sums = read_json(state / COMPLETE)
        if not isinstance(sums, dict) or RECORD not in sums or len(sums) < 2:
            return f"{COMPLETE} is no list of its files"
        changed = [name for name, value in sums.items() if Path(name).name != name or _sum(state / name) != value]
        return f"{changed[0]} has changed" if changed else ""
    except (OSError, ValueError) as error:
        return str(error)[:200]


def record(state: Path) -> dict[str, Any]:
    """The record that was passed to `save`, and the step. StateError when it cannot be read."""
    try:
        content = read_json(state / RECORD)
    except (OSError, ValueError) as error:
        raise StateError(f"{state / RECORD} cannot be read ({error}); delete the folder {state}") from error
    if not isinstance(content, dict):
        raise StateError(f"{state / RECORD} is no table; delete the folder {state}")
    return content


def names(state: Path) -> set[str]:
    """The names of the tensors in a state. StateError when they cannot be read."""
    if old_state.is_old(state):
        return _checked(state, lambda: old_state.names(state))
    return _checked(state, lambda: {name for path in _files(state) for name in _names(path)})


def load(state: Path, tensors: Tensors) -> None:
    """Fill `tensors` in place from the entries with the same names. StateError when one is missing or has another
    shape."""
    if old_state.is_old(state):
        _checked(state, lambda: old_state.load(state, tensors))
        return
    _checked(state, lambda: _load(state, tensors))


def _load(state: Path, tensors: Tensors) -> None:
    missing = set(tensors)
    with torch.no_grad():
        for path in _files(state):
            with safe_open(path, "pt") as file:
                for name in set(file.keys()) & missing:
                    tensors[name].copy_(_fitting(file.get_tensor(name), tensors[name], name))
                    missing.discard(name)
    if missing:
        raise ValueError(f"{min(missing)} is missing")


def _fitting(value: Tensor, target: Tensor, name: str) -> Tensor:
    if value.shape != target.shape:
        raise ValueError(f"{name} has the shape {tuple(value.shape)} instead of {tuple(target.shape)}")
    return value


def _checked(state: Path, work: Any) -> Any:
    try:
        return work()
    except (OSError, ValueError, SafetensorError, RuntimeError, KeyError) as error:
        raise StateError(
            f"{state} cannot be read ({error}); delete that folder, and the run resumes at the state before it"
        ) from error


def _files(state: Path) -> list[Path]:
    return sorted(state.glob("tensors-*.safetensors"))


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def _complete(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"step-*/{COMPLETE}"))


def _clear(folder: Path) -> None:
    """Delete the incomplete folders that a killed save left behind."""
    for path in folder.glob("partial-*"):
        shutil.rmtree(path)
    complete = set(_complete(folder))
    for path in folder.glob("step-*"):
        if path not in complete:
            shutil.rmtree(path)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()
