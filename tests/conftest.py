"""Fixtures of the whole suite. ComfyUI and the server are found by environment variables, which scripts/dev.py sets:

COMFYUI_DIR     a ComfyUI checkout; without it everything that needs ComfyUI is skipped
COMFYUI_PYTHON  the Python that runs its server (default: the one that runs the tests)
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from devkit.client import Client  # noqa: E402  after the path that leads there
from devkit.server import Server, spare_threads  # noqa: E402

pytest_plugins = ["suite"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from what is true now")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """golden(name, value): `value`, as JSON, is what tests/golden/<name>.json says; --update-golden rewrites it."""

    def check(name: str, value: object) -> None:
        path = ROOT / "tests" / "golden" / f"{name}.json"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
        assert path.is_file(), f"{path.name} is missing: write it with --update-golden"
        assert json.loads(json.dumps(value)) == json.loads(path.read_text(encoding="utf-8"))

    return check


@pytest.fixture(scope="session")
def comfyui_dir() -> Path:
    """The ComfyUI checkout."""
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR is not set; `python3 scripts/dev.py test` sets it")
    return Path(folder)


@pytest.fixture(scope="session")
def comfy(comfyui_dir: Path) -> ModuleType:
    """The `comfy` package, imported once, on the CPU. Tests import its submodules after asking for this."""
    sys.path.insert(0, str(comfyui_dir))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others deprecate while they are imported
        from comfy.cli_args import args

        args.cpu = True
        import comfy
        import comfy.model_management
        import comfy.sd
    return comfy


@pytest.fixture(scope="session")
def server(comfyui_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real ComfyUI server with this pack, one for the whole session."""
    python = Path(os.environ.get("COMFYUI_PYTHON") or sys.executable)
    base = tmp_path_factory.mktemp("comfyui")
    options = ("--preview-method", "latent2rgb")
    with Server(comfyui_dir, python, base, options=options, environment=spare_threads()) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Client:
    """A client of its own for each test: it gets its own events only."""
    return Client(server.url)
