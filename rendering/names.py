"""Names of jobs: what every file system takes, and what leaves room for our own files."""

import re

from .errors import RenderError

MAX_CHARACTERS, MAX_BYTES = 80, 200  # file systems allow 255 bytes; our suffixes and temporary names need up to 40
OWN = frozenset({"growing"})  # NAME.mp4 would be one of our own files
# Windows refuses these as names of files, with any suffix
DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in "0123456789¹²³")})


def check_name(name: str) -> None:
    """RenderError for a name that cannot be the name of a job on every system."""
    if not re.fullmatch(rf"\w[\w .+-]{{0,{MAX_CHARACTERS - 1}}}", name):
        raise RenderError(
            f"render: the name is {name[:100]!r}; use at most {MAX_CHARACTERS} letters, digits, spaces and . + - _, "
            "and start with a letter or a digit"
        )
    size = len(name.encode())
    if size > MAX_BYTES:
        raise RenderError(
            f"render: the name {name!r} has {size} bytes, and file systems need it to be at most {MAX_BYTES} long; "
            f"use at most {MAX_BYTES * len(name) // size} characters of this kind"
        )
    stem = name.split(".")[0].strip().casefold()
    if stem in DEVICES:
        raise RenderError(
            f"render: the name {name!r} is a device on Windows and cannot be the name of a file; choose another"
        )
    if name.strip().casefold() in OWN:
        raise RenderError(
            f"render: the name {name!r} is that of the file with the video so far; choose another name for the job"
        )
