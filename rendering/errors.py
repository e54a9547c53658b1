"""Errors while a video is written. Each message says what to do."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from av.error import FFmpegError

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # full disk, file size limit, user quota


class RenderError(ValueError):
    """Base class of all errors of this package."""


class OtherVersionError(RenderError):
    """Another version of StillMotion wrote this job folder."""


class BusyError(RenderError):
    """Another process is rendering this job."""


class NotWritableError(RenderError):
    """The folder for jobs cannot be created or written."""


class DiskFullError(RenderError):
    """There is no space left for a file. Finished clips are kept."""


class CodecError(RenderError):
    """This PyAV lacks an encoder, or its files cannot be joined."""


class SizeError(RenderError):
    """The codec does not support frames of this size."""


@contextmanager
def storage(folder: Path) -> Iterator[None]:
    """Convert the system's errors about writing into `folder` to ours."""
    try:
        yield
    except (OSError, FFmpegError) as error:
        number = getattr(error, "errno", None)
        if number in FULL:
            raise DiskFullError(
                f"render: there is no space left for {folder} ({error}); free some space and queue again: finished "
                "clips are kept, and rendering resumes at the next clip"
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise NotWritableError(
                f"render: {folder} is not writable ({error}); close the program that has a file of it open, choose "
                "another output folder, or change its permissions"
            ) from error
        if not _is_inside(error, folder):
            raise
        if number == errno.ENOENT:
            raise RenderError(
                f"render: a file or folder in {folder} was removed during the render ({error}); queue again: what is "
                "still there is not rendered again"
            ) from error
        raise RenderError(
            f"render: {folder} could not be read or written ({error}); check the disk and queue again: finished clips "
            "are kept"
        ) from error


def _is_inside(error: OSError | FFmpegError, folder: Path) -> bool:
    """Whether an error is about a file in this folder, and not about one that a sampler or decoder reads."""
    name = getattr(error, "filename", None)
    return isinstance(name, str | os.PathLike) and Path(os.fspath(name)).is_relative_to(folder)
