"""Weight files in the user's folders and in the pack, as the lists of loader nodes show them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import folder_paths

from ..model_patches.checkpoint import SUFFIXES

OWN = "stillmotion"  # of models/
POCKET = Path(__file__).resolve().parents[1] / "pocket"


def add_folder(name: str) -> None:
    folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))


def names(folders: Sequence[str], bundled: Mapping[str, Path]) -> list[str]:
    """The bundled files that are there, then the users' own."""
    present = [name for name, path in bundled.items() if path.is_file()]
    found = {name for folder in folders for name in folder_paths.get_filename_list(folder)}
    return present + sorted(name for name in found if name.endswith(SUFFIXES) and name not in bundled)


def path_of(name: str, folders: Sequence[str], bundled: Mapping[str, Path], what: str) -> Path:
    """The file behind a name of the list. ValueError when it has gone, naming the folders that were searched."""
    if name in bundled and bundled[name].is_file():
        return bundled[name]
    for folder in folders:
        path = folder_paths.get_full_path(folder, name)
        if path is not None:
            return Path(path)
    places = [place for folder in folders for place in folder_paths.get_folder_paths(folder)]
    raise ValueError(f"{what}: there is no file {name}; put it in one of {', '.join(places)}")


def bundled(path: Path) -> Path:
    """A file of the pack. ValueError when it is missing, as after a copy or a clone that was cut short."""
    if path.is_file():
        return path
    raise ValueError(
        f"{path.name} is missing: it belongs into the folder {path.parent}. Copy it from the repository, or install "
        "StillMotion again."
    )


def fingerprint(path: Path) -> tuple[int, int]:
    """ComfyUI writes this into the metadata of every video: nothing in it may tell of the user's folders."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size
