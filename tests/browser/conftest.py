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


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After the last test of this folder the page is empty: the editor draws itself even when nobody uses it."""
    last = nextitem is None or nextitem.path.parent != item.path.parent
    if last and (editor := item.config.stash.get(OPEN, None)):
        editor.page.goto("about:blank")


@pytest.fixture(scope="session")
def editor(server: Server, request: pytest.FixtureRequest) -> Iterator[Editor]:
    """One page for the whole session; each test loads its own workflow."""
    program = chromium.find()
    if program is None:
        pytest.skip(
            os.environ.get("STILLMOTION_NO_CHROMIUM") or "no Chromium; `python3 scripts/dev.py test` installs it"
        )
    with Editor(server.url, program) as opened:
        request.config.stash[OPEN] = opened
        yield opened


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
