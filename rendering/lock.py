"""A lock, so that only one process renders a job. The system releases it when the process ends, in any way."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import BusyError, RenderError, storage

LOCK = "job.lock"
# what the systems answer when another process holds the lock; Windows answers EACCES or EDEADLK
HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of a job folder. BusyError, without waiting, when another process holds it; NotWritableError or
    RenderError when there can be no lock in this folder."""
    with storage(folder):
        file = (folder / LOCK).open("a+b")
    with file:
        try:
            _take(file)
        except OSError as error:
            raise _refusal(folder, error) from error
        yield


def _refusal(folder: Path, error: OSError) -> RenderError:
    if error.errno in HELD:
        return BusyError(
            f"render: {folder} is being rendered by another process; wait until it ends, or give this job another name"
        )
    return RenderError(
        f"render: {folder} cannot be locked ({error}), so that two processes could write into it; choose an output "
        "folder on a disk of this machine"
    )


if os.name == "nt":
    import msvcrt

    def _take(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

else:
    import fcntl

    def _take(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
