"""The one place where the failures of a command that a user can mend become a sentence and exit code 2.

Expected are our own errors and those of the system about files. An error of Python's or torch's that comes out of their
own code is a bug of ours: it is shown with its traceback.
"""

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .plans.errors import InputError

PACKAGE = Path(__file__).resolve().parents[1]
EXIT_CODE = 2
FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


class Failure(SystemExit):
    """Ends the command with code 2. Its text is the sentence that was printed."""

    def __init__(self, sentence: str) -> None:
        super().__init__(EXIT_CODE)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


@contextmanager
def reported(*, show_traceback: bool = False) -> Iterator[None]:
    """Turn an expected failure into `Failure`. show_traceback: print where it came from, too."""
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.code, str):
            raise
        _end(error.code, error)
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        text = sentence(error)
        if text is None:
            raise
        _end(text, error)


def _end(text: str, error: BaseException) -> None:
    print_error(text)
    raise Failure(text) from error


def print_error(text: str) -> None:
    sys.stderr.write(f"error: {text}\n")


def sentence(error: Exception) -> str | None:
    """What a user is told about an error; None for a bug of ours."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return _about_files(error)
    return str(error) if isinstance(error, ValueError) and _is_ours(error) and str(error) else None


def _about_files(error: OSError) -> str:
    """Names the file and what to do."""
    if error.strerror is None:
        return str(error)  # one of ours, which names the file itself
    name = error.filename or "a file"
    if error.errno in FULL:
        return f"{name} could not be written, because the disk is full ({error.strerror}); free space and run again"
    advice = {
        errno.ENOENT: "give a path that exists",
        errno.EEXIST: "choose another path",
        errno.ENOTDIR: "a folder on this path is a file; choose another path",
        errno.EISDIR: "this is a folder; give a file",
        errno.EACCES: "change its permissions, or choose another path",
    }.get(error.errno or 0, "check the path and the disk")
    return f"{name}: {error.strerror}; {advice}"


def _is_ours(error: Exception) -> bool:
    """Whether an error was raised by code of this package, which raises ValueErrors with sentences."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not Path(frames[-1].filename).resolve().is_relative_to(PACKAGE):
        return False
    return (frames[-1].line or "").startswith("raise ")  # and not by Python itself, in a line of ours
