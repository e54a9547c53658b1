"""Text files are UTF-8 on every system: Windows would otherwise read and write them in the user's code page."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("evaluation", "model_patches", "nodes", "rendering", "scripts", "training")


def calls() -> Iterator[tuple[str, ast.Call]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", node


def mode_of(call: ast.Call) -> str:
    """The mode of `path.open(mode)`; "" where it is not a word of the source."""
    values = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    return next((str(value.value) for value in values if isinstance(value, ast.Constant)), "")


def lacks_encoding(call: ast.Call) -> bool:
    assert isinstance(call.func, ast.Attribute)
    name, keywords = call.func.attr, {keyword.arg for keyword in call.keywords}
    if name in ("read_text", "write_text"):
        return "encoding" not in keywords and len(call.args) < (1 if name == "read_text" else 2)
    return name == "open" and mode_of(call) in ("r", "w", "a", "r+", "w+") and "encoding" not in keywords


def test_every_text_file_is_utf_8():
    assert [place for place, call in calls() if lacks_encoding(call)] == []


def test_the_check_sees_a_missing_encoding():
    def call(source):
        return ast.parse(source).body[0].value  # pyright: ignore[reportAttributeAccessIssue]

    assert lacks_encoding(call("path.read_text()"))
    assert lacks_encoding(call("path.write_text(text)"))
    assert lacks_encoding(call("path.open('w')"))
    assert not lacks_encoding(call("path.open('rb')"))
    assert not lacks_encoding(call("path.read_text(encoding='utf-8')"))
