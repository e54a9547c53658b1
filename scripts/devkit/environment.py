"""The Python environments of the commands: pinned, shared by all checkouts, and separate from the user's own Python."""

import ast
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .files import ROOT, WINDOWS, Failed, cache_folder, digest, lock, need_space, remove_tree

UV = "uv==0.13.8"
COMPLETE = "COMPLETE"
SPACE_GB = {"env": 8.0, "cli": 1.0, "mutants": 0.2}  # torch for Linux includes CUDA
UV_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "proxy": "ALL_PROXY",
    "cert": "SSL_CERT_FILE",
}


def environment_python(kind: str = "env") -> Path:
    """The Python of the environment that requirements-<kind>.txt pins, which is installed if it is not complete."""
    requirements = ROOT / f"requirements-{kind}.txt"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = digest(requirements.read_text(encoding="utf-8"), version, sys.platform)
    folder = cache_folder() / f"{kind}-{name}"
    if not is_complete(folder):
        with lock(cache_folder() / f"{folder.name}.lock", f"it installs {folder.name}"):
            if not is_complete(folder):
                _install(kind, folder, requirements)
    return python_of(folder)


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if WINDOWS else "bin/python")


def script_of(environment: Path, name: str) -> Path:
    return python_of(environment).with_name(f"{name}.exe" if WINDOWS else name)


def is_complete(folder: Path) -> bool:
    """Whether an installation was completed and all of its files still exist."""
    try:
        entries = (folder / COMPLETE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return all((folder / entry).exists() for entry in entries)


def mark_complete(folder: Path, entries: list[Path]) -> None:
    """Write the marker file that `is_complete` reads, with the paths that must exist; call this last."""
    text = "".join(f"{entry.relative_to(folder).as_posix()}\n" for entry in sorted(entries))
    part = folder / f"{COMPLETE}.part"
    part.write_text(text, encoding="utf-8")
    os.replace(part, folder / COMPLETE)


def _install(kind: str, folder: Path, requirements: Path) -> None:
    if folder.exists():
        print(f"{folder} is incomplete and is installed again", flush=True)
        remove_tree(folder)
    need_space(cache_folder(), SPACE_GB[kind], f"The environment {folder.name}")
    print(f"installing {requirements.name} into {folder} (once for all checkouts)", flush=True)
    began = time.monotonic()
    uv = _uv()
    environment = {**os.environ, **uv_settings(), "UV_PYTHON_DOWNLOADS": "never", "VIRTUAL_ENV": ""}
    try:
        fetch(
            [uv, "venv", "--quiet", "--no-project", "--python", sys.executable, str(folder)],
            "a virtual environment",
            environment,
        )
        best = ["--index-strategy", "unsafe-best-match"]  # treats all indexes alike, as pip does
        install = [uv, "pip", "install", *best, "--python", str(python_of(folder)), "-r", str(requirements)]
        fetch(install, f"the packages of {requirements.name}", environment)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (site,) = folder.glob("Lib/site-packages" if WINDOWS else "lib/python*/site-packages")
    mark_complete(folder, [python_of(folder), *(path for path in site.iterdir() if path.name != "__pycache__")])
    print(f"installed in {time.monotonic() - began:.0f} s", flush=True)


def _uv() -> str:
    """Path of a working uv: the user's, else our own, which the user's pip installs into the cache."""
    if (path := shutil.which("uv")) and _runs([path, "--version"]):
        return path
    folder = cache_folder() / "tools" / UV.replace("==", "-")
    program = folder / "bin" / ("uv.exe" if WINDOWS else "uv")
    with lock(cache_folder() / "uv.lock", "it installs uv"):
        if not program.exists():
            with scratch("uv-") as part:
                fetch([*_pip(part), "install", "--quiet", "--target", str(part / "uv"), UV], "the installer uv")
                remove_tree(folder)
                folder.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part / "uv", folder)
    return str(program)


def _pip(part: Path) -> list[str]:
    """The command of the user's pip, else of a pip in a new virtual environment in `part`."""
    if _runs([sys.executable, "-m", "pip", "--version"]):
        return [sys.executable, "-m", "pip"]
    result = subprocess.run(
        [sys.executable, "-m", "venv", str(part / "pip")], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise Failed(
            f"{sys.executable} has neither uv nor pip nor a complete venv module, so nothing can be installed. "
            "Install one of them (Debian and Ubuntu: apt-get install python3-venv) and try again."
        )
    return [str(python_of(part / "pip")), "-m", "pip"]


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def uv_settings() -> dict[str, str]:
    """The user's pip settings for indexes, proxy and certificates as uv's variables; {} if uv has its own settings."""
    if any(os.environ.get(name) for name in UV_INDEXES) or any(path.is_file() for path in _uv_files()):
        return {}
    commands = ([sys.executable, "-m", "pip"], ["pip"])
    pip = next((command for command in commands if _runs([*command, "--version"])), None)
    if pip is None:
        return {}
    listing = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
    settings: dict[str, str] = {}
    # sections in pip's order of precedence; the last one wins
    for section in ("global", "install", ":env:"):
        for line in listing.stdout.splitlines():
            key, _, value = line.partition("=")
            if key.startswith(f"{section}.") and (name := PIP_TO_UV.get(key.removeprefix(f"{section}."))):
                settings[name] = " ".join(str(ast.literal_eval(value)).split())
    if links := settings.get("UV_FIND_LINKS"):
        settings["UV_FIND_LINKS"] = ",".join(links.split())
    return {name: value for name, value in settings.items() if not os.environ.get(name)}


def _uv_files() -> list[Path]:
    homes = [os.environ.get("XDG_CONFIG_HOME"), os.environ.get("APPDATA"), os.environ.get("PROGRAMDATA")]
    folders = [Path(home) for home in homes if home] + [Path.home() / ".config", Path("/etc")]
    return [folder / "uv" / "uv.toml" for folder in folders]


def fetch(command: list[str], purpose: str, environment: dict[str, str] | None = None) -> None:
    """Run an installer. In a terminal it shows its own progress; if it fails, Failed is raised with its message."""
    terminal = sys.stderr.isatty()
    stderr = None if terminal else subprocess.PIPE
    result = subprocess.run(command, env=environment, stderr=stderr, text=True, check=False)
    if result.returncode:
        message = " ".join((result.stderr or "").split())[-600:]
        raise Failed(
            f"Could not download {purpose}. "
            + (f"The installer reported: {message} " if message else "The installer reported the reason above. ")
            + "If this machine has no network, connect it; if it needs a proxy or a mirror, configure pip or uv as "
            "usual (pip.conf, PIP_INDEX_URL, UV_DEFAULT_INDEX, HTTPS_PROXY). Then run the same command again; the "
            "incomplete files were removed."
        )


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A temporary folder in the cache, and therefore on the disk of the installed files; deleted at the end."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=cache_folder(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)
