"""Folders, links and locks that behave alike on Linux, macOS and Windows."""

import contextlib
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK = "comfyui-stillmotion"
WINDOWS = sys.platform == "win32"


class Failed(Exception):
    """Ends a command. The message says what was requested, what is wrong and what to do."""


def cache_folder() -> Path:
    """The folder of the installations that all checkouts share; STILLMOTION_CACHE names another one."""
    if path := os.environ.get("STILLMOTION_CACHE"):
        return Path(path).expanduser().resolve()
    if WINDOWS:
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "stillmotion"


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def link_folder(link: Path, target: Path) -> None:
    """Make `link` point to the folder `target`: a symlink, on Windows a junction, which needs no special rights."""
    if link.exists() and link.resolve() == target.resolve():
        return
    unlink_folder(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        import _winapi

        _winapi.CreateJunction(str(target), str(link))
    else:
        with contextlib.suppress(FileExistsError):  # another command has created it in the meantime
            link.symlink_to(target, target_is_directory=True)


def unlink_folder(link: Path) -> None:
    """Remove a link, but never its target."""
    if link.is_symlink():
        link.unlink()
    elif WINDOWS and link.exists():
        link.rmdir()  # removes a junction, but not a folder that contains files


def package_link() -> Path:
    """A folder for PYTHONPATH in which this checkout is named `stillmotion`, whatever its own folder is named."""
    folder = cache_folder() / "links" / digest(str(ROOT))
    link_folder(folder / "stillmotion", ROOT)
    return folder


def remove_tree(folder: Path) -> None:
    """Delete a folder. It is renamed first, so that an interruption leaves no incomplete folder under its name."""
    if not folder.exists():
        return
    aside = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    os.replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def need_space(folder: Path, gigabytes: float, purpose: str) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise Failed(
            f"{purpose} needs about {gigabytes:g} GB in {folder}, where {free:.1f} GB are free. "
            "Free some space, or set STILLMOTION_CACHE to another folder."
        )


@contextlib.contextmanager
def lock(path: Path, purpose: str, *, wait: bool = True) -> Iterator[None]:
    """A lock for one process at a time. It is never stale, since the operating system releases it with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        reported = False
        while not _try_lock(file.fileno()):
            if not wait:
                raise Failed(f"Another run has locked {path.with_suffix('')}: {purpose}")
            if not reported:
                print(f"waiting for another run: {purpose}", flush=True)
                reported = True
            time.sleep(0.5)
        yield  # closing the file releases it


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
