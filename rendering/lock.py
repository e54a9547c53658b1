"""One process for one job. The system gives the lock back when its process ends, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import BusyError

LOCK = "job.lock"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds the lock of a job folder. BusyError when somebody else does; nobody waits."""
    with (folder / LOCK).open("a+b") as file:
        try:
            _take(file)
        except OSError as error:
            raise BusyError(
                f"render: {folder} is being rendered by another process; wait for its end, or give this job "
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
