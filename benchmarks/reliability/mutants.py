"""Small faults in the sources, and whether the tests notice them.

Cosmic Ray makes the mutants (scripts/mutations.py, in an environment of its own). Each is written into a copy of
the checkout, never into the checkout, and the tests that concern its module run on the copy in one process, up to the
first that fails. This process has imported torch and the like once and forks for every mutant, so that a mutant costs
its tests and not the imports.
"""

import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...evaluation.scores.report import ROOT

PACKAGE = "stillmotion"
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "runs", "output", "*.egg-info", "docs")
MEMORY = 16 << 30  # bytes of address space: a wrong size must not take the whole machine
WARM = ("torch", "numpy", "av", "PIL.Image", "safetensors.torch", "diffusers", "transformers", "accelerate", "pytest")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    """A source file with one fault. `file` is relative to the root; `before` and `after`: the lines that differ."""

    file: str
    line: int
    operator: str
    before: str
    after: str
    code: str

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.file}\0{self.code}".encode()).hexdigest()[:16]


def sample(python: Path, files: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """Mutants of the files (relative to the root), at most one at a place, in proportion to each file's places."""
    request = {"files": [str(ROOT / file) for file in files], "count": count, "seed": seed}
    script = ROOT / "scripts" / "mutations.py"
    ended = subprocess.run(
        [str(python), str(script)], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(f"The mutants could not be made: {ended.stderr.strip()[-1000:]}")
    return [_mutant(entry) for entry in json.loads(ended.stdout)]


def _mutant(entry: dict) -> Mutant:
    path = Path(entry["file"])
    plain = path.read_text(encoding="utf-8").splitlines()
    code = entry["code"].splitlines()
    same = next(i for i, (a, b) in enumerate(zip([*plain, None], [*code, None], strict=False)) if a != b)
    end = next(i for i, (a, b) in enumerate(zip(plain[::-1], code[::-1], strict=False)) if a != b)
    before, after = ("\n".join(lines[same : max(same + 1, len(lines) - end)]).strip() for lines in (plain, code))
    file = path.relative_to(ROOT).as_posix()
    return Mutant(file, entry["line"], entry["operator"], before, after, entry["code"])


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """A copy of a checkout, in a folder that PYTHONPATH can name: its own name is that of the package."""
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        yield Path(shutil.copytree(root, Path(folder) / PACKAGE, ignore=NOT_COPIED))


@contextmanager
def applied(copy: Path, mutant: Mutant) -> Iterator[None]:
    """The copy with the mutant in it, and afterwards without. Python compiles a file anew by its time, so the time of
    the mutant is another, and that of the original stays."""
    path = copy / mutant.file
    plain, stat = path.read_bytes(), path.stat()
    try:
        path.write_text(mutant.code, encoding="utf-8")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**10))
        yield
    finally:
        path.write_bytes(plain)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def warm_up() -> None:
    """Import what the tests import of others."""
    for name in WARM:
        importlib.import_module(name)
    if folder := os.environ.get("COMFYUI_DIR"):
        sys.path.insert(0, folder)
        arguments, sys.argv = sys.argv, sys.argv[:1]
        importlib.import_module("comfy.cli_args").args.cpu = True
        importlib.import_module("comfy.sd")
        sys.argv = arguments


@dataclass(frozen=True)
class Outcome:
    """`kind`: "noticed", "survived" or "timeout"; `by`: the first test that failed, or what pytest said."""

    kind: str
    by: str
    seconds: float


def attempt(copy: Path, tests: Sequence[str], timeout: float, *, compile_files: bool = False) -> Outcome:
    """Run the tests on the copy in a child of this process, up to the first that fails.

    compile_files: keep the compiled files in the copy; for a run without a mutant.
    """
    log, began = copy.parent / "log.txt", time.monotonic()
    child = os.fork()
    if not child:
        _run(copy, tests, log, compile_files)
    code = _wait(child, timeout)
    seconds = time.monotonic() - began
    if code is None:
        return Outcome("timeout", "", seconds)
    text = log.read_text(encoding="utf-8", errors="replace")
    if code == 5:
        raise SystemExit(f"There are no tests in {', '.join(tests)}.")
    if code == 0:
        return Outcome("survived", "", seconds)
    failed = FAILED.search(text)
    return Outcome("noticed", failed.group(1) if failed else text.strip()[-200:], seconds)


def _wait(child: int, timeout: float) -> int | None:
    """The exit code, or None after the timeout. Nothing that the child has started stays."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            _kill(child)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    _kill(child)
    os.waitpid(child, 0)
    return None


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _run(copy: Path, tests: Sequence[str], log: Path, compile_files: bool) -> None:
    """In the child: as a process that has been started in the copy."""
    code: int = 3
    try:
        os.setsid()
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for name in [name for name in sys.modules if name.partition(".")[0] in (PACKAGE, "devkit")]:
            del sys.modules[name]
        sys.modules["__main__"] = types.ModuleType("__main__")  # what tests start with multiprocessing imports it
        os.chdir(copy)
        pythonpath = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:] = [str(copy.parent), *(path for path in sys.path if path not in pythonpath)]
        os.environ["PYTHONPATH"] = str(copy.parent)
        sys.dont_write_bytecode = not compile_files
        os.environ["PYTHONDONTWRITEBYTECODE"] = "" if compile_files else "1"
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # of plugins that are imported here already
        pytest = sys.modules["pytest"]
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(copy), *tests]))
    except Exception:  # noqa: BLE001  a fork must not return to what the caller does next
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
