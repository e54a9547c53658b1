"""The environments of the commands: pinned, shared by all checkouts, never the user's own Python."""

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
SPACE_GB = {"env": 8.0, "cli": 1.0}  # torch for Linux brings CUDA along
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
    """The Python of the environment that requirements-<kind>.txt pins; made, or made again, if it is not whole."""
    requirements = ROOT / f"requirements-{kind}.txt"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = digest(requirements.read_text(encoding="utf-8"), version, sys.platform)
    folder = cache_folder() / f"{kind}-{name}"
    if not whole(folder):
        with lock(cache_folder() / f"{folder.name}.lock", f"{folder.name} is being installed"):
            if not whole(folder):
                _install(kind, folder, requirements)
    return python_of(folder)


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if WINDOWS else "bin/python")


def script_of(environment: Path, name: str) -> Path:
    return python_of(environment).with_name(f"{name}.exe" if WINDOWS else name)


def whole(folder: Path) -> bool:
    """Whether an install got to its end and all that it put there is still there."""
    try:
        entries = (folder / COMPLETE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return all((folder / entry).exists() for entry in entries)


def complete(folder: Path, entries: list[Path]) -> None:
    """Write the marker, last: the paths that `whole` looks for."""
    text = "".join(f"{entry.relative_to(folder).as_posix()}\n" for entry in sorted(entries))
    part = folder / f"{COMPLETE}.part"
    part.write_text(text, encoding="utf-8")
    os.replace(part, folder / COMPLETE)


def _install(kind: str, folder: Path, requirements: Path) -> None:
    if folder.exists():
        print(f"{folder} is not whole; it is made again", flush=True)
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
        best = ["--index-strategy", "unsafe-best-match"]  # all indexes count alike, as they do for pip
        install = [uv, "pip", "install", *best, "--python", str(python_of(folder)), "-r", str(requirements)]
        fetch(install, f"the packages of {requirements.name}", environment)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (site,) = folder.glob("Lib/site-packages" if WINDOWS else "lib/python*/site-packages")
    complete(folder, [python_of(folder), *(path for path in site.iterdir() if path.name != "__pycache__")])
    print(f"installed in {time.monotonic() - began:.0f} s", flush=True)


def _uv() -> str:
    """A uv that runs: the user's, else one of our own, put into the cache by the user's pip."""
    if (found := shutil.which("uv")) and _runs([found, "--version"]):
        return found
    folder = cache_folder() / "tools" / UV.replace("==", "-")
    program = folder / "bin" / ("uv.exe" if WINDOWS else "uv")
    with lock(cache_folder() / "uv.lock", "uv is being installed"):
        if not program.exists():
            with scratch("uv-") as part:
                fetch([*_pip(part), "install", "--quiet", "--target", str(part / "uv"), UV], "the installer uv")
                remove_tree(folder)
                folder.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part / "uv", folder)
    return str(program)


def _pip(part: Path) -> list[str]:
    """The user's pip, else the one of a virtual environment in `part`."""
    if _runs([sys.executable, "-m", "pip", "--version"]):
        return [sys.executable, "-m", "pip"]
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(part / "pip")], capture_output=True, text=True, check=False
    )
    if made.returncode:
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
    """What the user told pip about indexes, proxy and certificates, in uv's words, unless uv has been told itself."""
    if any(os.environ.get(name) for name in UV_INDEXES) or any(path.is_file() for path in _uv_files()):
        return {}
    asked = next((pip for pip in ([sys.executable, "-m", "pip"], ["pip"]) if _runs([*pip, "--version"])), None)
    if asked is None:
        return {}
    listed = subprocess.run([*asked, "config", "list"], capture_output=True, text=True, check=False)
    told: dict[str, str] = {}
    # sections in pip's order of precedence, the last one wins
    for section in ("global", "install", ":env:"):
        for line in listed.stdout.splitlines():
            key, _, value = line.partition("=")
            if key.startswith(f"{section}.") and (name := PIP_TO_UV.get(key.removeprefix(f"{section}."))):
                told[name] = " ".join(str(ast.literal_eval(value)).split())
    if links := told.get("UV_FIND_LINKS"):
        told["UV_FIND_LINKS"] = ",".join(links.split())
    return {name: value for name, value in told.items() if not os.environ.get(name)}


def _uv_files() -> list[Path]:
    homes = [os.environ.get("XDG_CONFIG_HOME"), os.environ.get("APPDATA"), os.environ.get("PROGRAMDATA")]
    folders = [Path(home) for home in homes if home] + [Path.home() / ".config", Path("/etc")]
    return [folder / "uv" / "uv.toml" for folder in folders]


def fetch(command: list[str], what: str, environment: dict[str, str] | None = None) -> None:
    """Run an installer. Its own progress is shown on a terminal; a failure ends in one paragraph."""
    shown = sys.stderr.isatty()
    ended = subprocess.run(command, env=environment, stderr=None if shown else subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        said = " ".join((ended.stderr or "").split())[-600:]
        raise Failed(
            f"Could not fetch {what}. "
            + (f"The installer said: {said} " if said else "The installer said why above. ")
            + "If this machine has no network, connect it; if it needs a proxy or a mirror, tell pip or uv as usual "
            "(pip.conf, PIP_INDEX_URL, UV_DEFAULT_INDEX, HTTPS_PROXY). Then run the same command again: nothing half "
            "made was left behind."
        )


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A folder in the cache, on the same disk as what it becomes, gone at the end."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=cache_folder(), ignore_cleanup_errors=True) as folder:
        yield Path(folder)
