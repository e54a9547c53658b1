"""Atomic files: each is written under a temporary name, flushed to the disk and then renamed."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

MAX_JSON = 2**26  # bytes
PART = 2**24  # bytes of a digest between two looks
# what the systems answer when another process holds a lock; Windows answers EACCES or EDEADLK
LOCKED = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK})


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


def read_json(path: Path, most: int = MAX_JSON) -> Any:
    """The content of a JSON file. ValueError for whatever is no JSON text of at most `most` bytes, also where Python's
    reader gives up for another reason (text that is no UTF-8, lists in lists without an end, numbers of 5,000 digits).
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most} bytes")
    return parse_json(content.decode("utf-8"))


def parse_json(text: str) -> Any:
    """The value of a JSON text. ValueError for any other text."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its lists and tables are nested too deeply") from error


def digest_of(tensors: Mapping[str, Tensor], label: str = "", look: Callable[[], None] = lambda: None) -> str:
    """32 hexadecimal digits that differ when any bit of any tensor, a name, a shape, a type or the label differs.

    The order of the tensors does not matter. look: is called for each part of them and may stop it.
    """
    digest = hashlib.blake2b(label.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        for part in content.split(PART):
            look()
            content_part: Any = part.numpy()
            digest.update(content_part)
    return digest.hexdigest()


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


if os.name == "nt":
    import msvcrt

    def try_lock(file: IO[bytes]) -> None:
        """Lock a file until it is closed. OSError, without waiting, of `LOCKED` when another process holds the lock."""
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

else:
    import fcntl

    def try_lock(file: IO[bytes]) -> None:
        """Lock a file until it is closed. OSError, without waiting, of `LOCKED` when another process holds the lock."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
