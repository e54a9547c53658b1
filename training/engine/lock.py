"""A lock, so that only one run writes into a folder. The system releases it when the process ends, in any way."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...model_patches.files import LOCKED, try_lock
from ..plans.errors import InputError

LOCK = "run.lock"


class BusyRun(InputError):
    """Another process trains in this folder."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is created. BusyRun, without waiting, when another process holds it.

    On a file system without locks there is none; then nothing is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+b") as file:
        try:
            try_lock(file)
        except OSError as error:
            if error.errno in LOCKED:
                raise BusyRun(
                    f"{folder} is being trained by another process; wait until it ends, or choose another --out"
                ) from error
        yield
