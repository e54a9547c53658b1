"""A lock, so that only one process renders a job. The system releases it when the process ends, in any way."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import BusyError

LOCK = "job.lock"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of a job folder. BusyError, without waiting, when another process holds it."""
    with (folder / LOCK).open("a+b") as file:
        try:
            _take(file)
        except OSError as error:
            raise BusyError(
                f"render: {folder} is being rendered by another process; wait until it ends, or give this job "
                "another name"
            ) from error
        yield


if os.name == "nt":
    import msvcrt

    def _take(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

else:
    import fcntl

    def _take(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
