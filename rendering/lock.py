"""A lock, so that only one process renders a job. The system releases it when the process ends, in any way."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..model_patches.files import LOCKED
from ..model_patches.files import try_lock as _take
from .errors import BusyError, RenderError, storage

LOCK = "job.lock"


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
    if error.errno in LOCKED:
        return BusyError(
            f"render: {folder} is being rendered by another process; wait until it ends, or give this job another name"
        )
    return RenderError(
        f"render: {folder} cannot be locked ({error}), so that two processes could write into it; choose an output "
        "folder on a disk of this machine"
    )
