"""What can go wrong while a video is written. Each error says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from av.error import FFmpegError

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # disk, size of one file, share of a user


class RenderError(ValueError):
    """All errors of this folder."""


class OtherVersionError(RenderError):
    """A job folder that another version of StillMotion wrote."""


class BusyError(RenderError):
    """Another process renders this job."""


class NotWritableError(RenderError):
    """The folder for jobs cannot be made or written."""


class DiskFullError(RenderError):
    """No room for a file. Finished clips are kept."""


class CodecError(RenderError):
    """This PyAV has no such encoder, or its files cannot be joined."""


class SizeError(RenderError):
    """The codec takes no pictures of this size."""


@contextmanager
def storage(folder: Path) -> Iterator[None]:
    """Names what the system says about writing into `folder`."""
    try:
        yield
    except (OSError, FFmpegError) as error:
        number = getattr(error, "errno", None)
        if number in FULL:
            raise DiskFullError(
                f"render: there is no room left for {folder} ({error}); free some space and queue again, finished "
                "clips are kept and the render goes on with the next"
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise NotWritableError(
                f"render: {folder} cannot be written ({error}); choose another output directory, or give yourself "
                "the right to write there"
            ) from error
        raise
