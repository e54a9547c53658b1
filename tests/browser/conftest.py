"""A real Chromium with ComfyUI's editor open on the real server."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from devkit import chromium, workflow
from devkit.editor import Editor
from devkit.server import Server

OPEN = pytest.StashKey[Editor]()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After the last test of this folder the browser is closed. The editor draws itself even when nobody uses it, and
    Playwright keeps an event loop in this process, beside which asyncio.run and deep recursion fail in later tests."""
    if nextitem is None or nextitem.path.parent != item.path.parent:
        close(item.config)


def close(config: pytest.Config) -> None:
    if editor := config.stash.get(OPEN, None):
        del config.stash[OPEN]
        editor.__exit__()


@pytest.fixture(scope="session")
def editor(server: Server, request: pytest.FixtureRequest) -> Iterator[Editor]:
    """One page for all tests of this folder, one after the other; each test loads its own workflow."""
    program = chromium.find()
    if program is None:
        pytest.skip(
            os.environ.get("STILLMOTION_NO_CHROMIUM") or "no Chromium; `python3 scripts/dev.py test` installs it"
        )
    request.config.stash[OPEN] = Editor(server.url, program).__enter__()
    yield request.config.stash[OPEN]
    close(request.config)


@pytest.fixture(scope="session")
def shots(root: Path) -> Path:
    """The folder of the screenshots."""
    folder = root / "output" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def editor_file():
    """The editor form of a bundled workflow, by its short name."""
    return lambda name: json.loads(workflow.templates()[name].editor_file.read_text(encoding="utf-8"))
