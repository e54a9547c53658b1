"""Weight files in the user's folders and in the pack, as the lists of loader nodes show them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import folder_paths

from ...model_patches.checkpoint import SUFFIXES

OWN = "stillmotion"  # of models/
POCKET = Path(__file__).resolve().parents[2] / "pocket"


def add_folder(name: str) -> None:
    folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))


def names(folders: Sequence[str], bundled: Mapping[str, Path]) -> list[str]:
    """The bundled files that exist, then the user's files."""
    present = [name for name, path in bundled.items() if path.is_file()]
    listed = {name for folder in folders for name in folder_paths.get_filename_list(folder)}
    return present + sorted(name for name in listed if name.lower().endswith(SUFFIXES) and name not in bundled)


def path_of(name: str, folders: Sequence[str], bundled: Mapping[str, Path], kind: str) -> Path:
    """The path of a listed file. ValueError, with the folders that were searched, when it no longer exists.

    A name that was saved on Windows, with backslashes, is found elsewhere, too, and the other way round.
    """
    items = names(folders, bundled)
    listed = name if name in items else next((item for item in items if _plain(item) == _plain(name)), "")
    if listed in bundled:
        return bundled[listed]
    for folder in folders if listed else ():
        path = folder_paths.get_full_path(folder, listed)
        if path is not None:
            return Path(path)
    paths = [path for folder in folders for path in folder_paths.get_folder_paths(folder)]
    raise ValueError(f"{kind}: the file {name} does not exist; put it in one of {', '.join(paths)}")


def _plain(name: str) -> str:
    return name.replace("\\", "/")


def validated(find: Callable[[str], Path], name: str | None) -> bool | str:
    """For a loader's `validate_inputs`, which ComfyUI calls instead of its own comparison with the list: True for a
    name that `find` accepts, otherwise its message. None: another node will give the name."""
    try:
        if name is not None:
            find(name)
    except ValueError as error:
        return str(error)
    return True


def bundled(path: Path) -> Path:
    """A file of the pack. ValueError when it is missing, for example after an incomplete copy or clone."""
    if path.is_file():
        return path
    raise ValueError(
        f"{path.name} is missing from the folder {path.parent}. Copy it from the repository, or install "
        "StillMotion again."
    )


def fingerprint(path: Path) -> tuple[int, int]:
    """Time and size of a file. ComfyUI writes them into the metadata of videos, so paths must not be in them."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size
