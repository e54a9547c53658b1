"""Atomic files: each is written under a temporary name, flushed to the disk and then renamed."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save as serialise
from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to. At the end of the block it is renamed to `path`; after an error it is removed.

    After any interruption, even a power cut, `path` has either its old or its new content, never half a file. The
    folder must exist.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
        flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with a header. A missing folder is created; the file gets default permissions.

    (The writer of safetensors makes files that only the owner can read.) OSError when the disk is full or the folder is
    not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(packed(tensors, header))


def packed(tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> bytes:
    """The content of a safetensors file."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return serialise(plain, dict(header or {}))


def write_text(text: str, path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut. Windows has no such call and does not need it."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems cannot flush folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
