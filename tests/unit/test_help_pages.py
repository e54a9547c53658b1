"""The messages in the help pages are messages of the code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("evaluation", "model_patches", "nodes", "rendering")
GAP = "\0"  # in place of a value in an f-string
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))


def texts(tree: ast.AST) -> list[str]:
    """All strings of a source, with GAP for each value in an f-string or % format."""
    plain = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    joined = [
        "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
    ]
    return [re.sub(r"%[sdg]", GAP, text) for text in plain] + joined


def messages(page: str) -> list[str]:
    """The first column of the tables of errors, and the messages in lists."""
    section = re.split(r"^## (?:Errors|Messages)$", page, maxsplit=1, flags=re.M)
    if len(section) == 1:
        return []
    cells = re.findall(r"^\| (.*?) \|", section[1], flags=re.M)
    return [cell for cell in cells if cell != "message"] + re.findall(r"^- \*(.*?)\*:", section[1], flags=re.M)


def pattern(message: str) -> re.Pattern[str]:
    """A message whose values, which are numbers, names in quotes and "...", may be any value in the code."""
    parts = re.split(r"\.\.\.|'\w+'|\d+(?:\.\d+)?", message)
    return re.compile(".{1,40}?".join(re.escape(part.strip()) for part in parts if part.strip()), re.S)


@pytest.fixture(scope="module")
def strings():
    sources = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return [text for path in sources for text in texts(ast.parse(path.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_message_of_a_help_page_is_in_the_code(page, strings):
    missing = [m for m in messages(page.read_text(encoding="utf-8")) if not any(map(pattern(m).search, strings))]
    assert missing == []


def test_messages_are_compared_without_their_values():
    code = texts(ast.parse('f"a clip has {n} frames, not {m}"'))
    assert any(map(pattern("a clip has 48 frames, not 32").search, code))
    assert not any(map(pattern("a clip of 48 frames").search, code))
    page = (
        "# T\n\n## Errors\n\n| message | what to do |\n|---|---|\n| no file | choose one |\n\n- *no luck*: try again.\n"
    )
    assert messages(page) == ["no file", "no luck"]
