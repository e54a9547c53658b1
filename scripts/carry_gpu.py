#!/usr/bin/env python3
"""Collect what `bench gpu` needs on a machine without a network: wheels, ComfyUI's Python files and this package.

The folder holds `wheels`, `ComfyUI`, `stillmotion` and `run.sh`. The wheels are for Python 3.12 on x86-64 Linux; torch,
torchvision, transformers, accelerate, safetensors and einops must be there already. comfy-kitchen is packed again
without its libraries for CUDA and HIP, which are nearly all of its 43 MiB; its other backends do the same.
"""

import argparse
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ("diffusers", "importlib_metadata", "zipp", "torchsde", "trampoline", "comfy-aimdo", "comfy-kitchen")
LIBRARY = re.compile(r"comfy_kitchen/backends/(cuda|hip)/.*\.so")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
# ComfyUI: what `import comfy` and its samplers need. Tokenizers of other text encoders are 25 MB of text.
COMFYUI_FOLDERS = ("comfy", "comfy_api", "comfy_execution", "utils")
COMFYUI_DATA = (".py", ".json", ".txt")
FOREIGN_DATA = re.compile(r"comfy/text_encoders/.*\.(json|txt|model)$")
PACKAGE_FOLDERS = ("benchmarks", "evaluation", "model_patches", "rendering", "training")
PACKAGE_DATA = (".py", ".toml")
POCKET = ("pocket", "harivo", "vidrd", "dreamvideo", "artv", "temporal_decoder", "loras/pocket_glow")
LIMIT_MIB = 60
RUN = """#!/bin/sh
# Runs the benchmark in this folder with the Python that is named by PYTHON (python3).
cd "$(dirname "$0")" || exit 1
PYTHON=${PYTHON:-python3}
[ -d site ] || "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target site wheels/*.whl || exit 1
export PYTHONPATH="$PWD:$PWD/site" COMFYUI_DIR="$PWD/ComfyUI" HF_HUB_OFFLINE=1
exec "$PYTHON" -P -m stillmotion.benchmarks.bench_gpu --out results "$@"
"""


def collect_wheels(folder: Path) -> None:
    """Download the wheels for the other machine, in the versions of requirements-env.txt where it names them."""
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements-env.txt").read_text(encoding="utf-8"), re.M))
    names = [f"{name}=={pins[name]}" if name in pins else name for name in WHEELS]
    target = ["--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:", "--no-deps"]
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "-q", *target, *platforms, "-d", str(folder), *names]
    subprocess.run(command, check=True)
    for wheel in folder.glob("comfy_kitchen-*.whl"):
        repack(wheel)


def repack(wheel: Path) -> None:
    """Remove the libraries from comfy-kitchen's wheel, and from its record."""
    small = wheel.with_suffix(".small")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        lines = []
        for name in old.namelist():
            if not LIBRARY.fullmatch(name) and name != record:
                content = old.read(name)
                new.writestr(name, content)
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                lines.append(f"{name},sha256={digest},{len(content)}")
        new.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    os.replace(small, wheel)


def copy_files(source: Path, target: Path, names: list[Path]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def comfyui_files(source: Path) -> list[Path]:
    """The files of ComfyUI that travel, relative to its folder."""
    files = [path for folder in COMFYUI_FOLDERS for path in (source / folder).rglob("*") if path.suffix in COMFYUI_DATA]
    names = [path.relative_to(source) for path in [*files, *source.glob("*.py")]]
    return [name for name in names if not FOREIGN_DATA.fullmatch(name.as_posix())]


def package_files(root: Path = ROOT) -> list[Path]:
    """The files of this package that travel, relative to it."""
    files = [path for folder in PACKAGE_FOLDERS for path in (root / folder).rglob("*") if path.suffix in PACKAGE_DATA]
    names = [path.relative_to(root) for path in [*files, root / "__init__.py"]]
    return [*names, *(Path("pocket") / f"{name}.safetensors" for name in POCKET)]


def find_comfyui(option: str | None) -> Path:
    if option or os.environ.get("COMFYUI_DIR"):
        return Path(option or os.environ["COMFYUI_DIR"])
    sys.path.insert(0, str(ROOT / "scripts"))
    from devkit import comfyui
    from devkit.environment import environment_python

    return comfyui.find_for_tools(None, environment_python()).folder


def mebibytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new folder for everything that travels")
    parser.add_argument("--comfyui", metavar="DIR", help="a ComfyUI folder (default: that of this project's tools)")
    options = parser.parse_args()
    if options.folder.exists() and any(options.folder.iterdir()):
        print(f"{options.folder} is not empty; name a new folder", file=sys.stderr)
        return 1
    collect_wheels(options.folder / "wheels")
    comfyui = find_comfyui(options.comfyui)
    copy_files(comfyui, options.folder / "ComfyUI", comfyui_files(comfyui))
    copy_files(ROOT, options.folder / "stillmotion", package_files())
    (options.folder / "run.sh").write_text(RUN, encoding="utf-8")
    (options.folder / "run.sh").chmod(0o755)
    archive = Path(shutil.make_archive(str(options.folder), "gztar", options.folder))
    for part in ("wheels", "ComfyUI", "stillmotion"):
        print(f"{part}: {mebibytes(options.folder / part):.1f} MiB")
    size = archive.stat().st_size / 2**20
    print(f"{archive}: {size:.1f} MiB packed")
    if size > LIMIT_MIB:
        print(f"that is more than the {LIMIT_MIB} MiB that should travel", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
