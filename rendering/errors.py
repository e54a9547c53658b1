"""Errors while a video is written. Each message says what to do."""

import errno
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
                f"render: {folder} is not writable ({error}); choose another output folder, or change its permissions"
            ) from error
        raise
