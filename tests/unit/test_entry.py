"""The entry of the pack on versions of Python and ComfyUI that are too old."""

import ast
import sys
import tomllib
import types
from pathlib import Path

import pytest

import stillmotion

ROOT = Path(__file__).resolve().parents[2]


def entered() -> object:
    """The extension that the entry gives to ComfyUI, which awaits it."""
    with pytest.raises(StopIteration) as end:
        stillmotion.comfy_entrypoint().send(None)
    return end.value.value


def entry_error() -> str:
    """The error of the entry, which ComfyUI writes into its log as one line."""
    with pytest.raises(RuntimeError) as error:
        entered()
    return str(error.value)


def host(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """A ComfyUI of that version, with the parts that the entry reads."""
    module = types.ModuleType("comfyui_version")
    module.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, "comfyui_version", module)


def test_an_older_python_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    text = entry_error()
    assert text.startswith("StillMotion needs Python 3.11 or newer, and ComfyUI runs on Python 3.10.13")
    assert "\n" not in text


@pytest.mark.parametrize("version", ["0.29.4", "0.3.75", "v0.29.0"])
def test_an_older_comfyui_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch, version: str):
    host(monkeypatch, version)
    text = entry_error()
    assert text.startswith(f"StillMotion needs ComfyUI 0.30.0 or newer, and this is ComfyUI {version}")
    assert "\n" not in text


@pytest.mark.parametrize("version", ["0.30.0", "0.38.1", "1.0.0", "v0.31.0", "0.30.0-rc1", "nightly", ""])
def test_a_newer_comfyui_and_a_version_that_cannot_be_read_are_not_refused(
    monkeypatch: pytest.MonkeyPatch, version: str
):
    host(monkeypatch, version)
    nodes = types.ModuleType("stillmotion.nodes")
    nodes.__dict__["StillMotionExtension"] = type("Extension", (), {})
    monkeypatch.setitem(sys.modules, "stillmotion.nodes", nodes)
    assert type(entered()).__name__ == "Extension"


def test_the_entry_is_read_by_pythons_that_are_older_than_it_needs():
    """Otherwise the message could not be shown."""
    ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"), feature_version=(3, 8))


def test_the_floors_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["requires-python"] == f">={'.'.join(map(str, stillmotion.PYTHON))}"
    assert project["tool"]["comfy"]["requires-comfyui"] == f">={'.'.join(map(str, stillmotion.COMFYUI))}"
