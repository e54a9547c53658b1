"""Names inside functions are nouns of the field: none is a participle or a word that says nothing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "evaluation", "model_patches", "nodes", "rendering", "scripts", "training")
WORDS = """
asked begun built chosen drawn found given gone got heard held kept lacking left lost made moved needed odd ours own
reached said seen shown theirs there told wanted what who why words
"""
VAGUE = frozenset(WORDS.split())
GEOMETRY = frozenset({"bottom", "right", "top"})  # beside one of these, `left` is a coordinate
# Files in which a word of the list means what it says: the words of a caption.
MEANT: dict[str, frozenset[str]] = {
    "training/data/sprites.py": frozenset({"words"}),
    "training/pocket/text.py": frozenset({"words"}),
}


def files() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def local_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Arguments, variables and functions inside a function."""
    nodes = list(ast.walk(function))
    names = {node.arg for node in nodes if isinstance(node, ast.arg)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node is not function}
    return {name.strip("_") for name in names}


def vague_names(source: str) -> set[str]:
    """The names on the list in the functions of a file, and of its private functions."""
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    vague = {f.name.strip("_") for f in functions if f.name.startswith("_")} & VAGUE
    for function in functions:
        names = local_names(function)
        vague |= (names & VAGUE) - ({"left"} if names & GEOMETRY else set())
    return vague


@pytest.mark.parametrize("path", list(files()), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_local_name_is_vague(path):
    name = path.relative_to(ROOT).as_posix()
    vague = vague_names(path.read_text(encoding="utf-8")) - MEANT.get(name, frozenset())
    assert sorted(vague) == [], f"{name}: use the noun of the field for what these names hold"


@pytest.mark.parametrize(
    ("source", "vague"),
    [
        ("def f(x):\n    found = x\n    return found", {"found"}),
        ("def f(given): return given", {"given"}),
        ("def f(x):\n    return [told for told in x]", {"told"}),
        ("class C:\n    def _kept(self): return 1", {"kept"}),
        ("def f(x):\n    def shown(): return x\n    return shown", {"shown"}),
        ("def f(x):\n    try: x()\n    except ValueError as what: print(what)", {"what"}),
        ("def f(x):\n    left, top = x\n    return left + top", set()),
        ("def f(x):\n    left = x\n    return left", {"left"}),
        ("def found(x): return x.given", set()),
    ],
)
def test_the_check_sees_every_kind_of_local_name(source, vague):
    assert vague_names(source) == vague
