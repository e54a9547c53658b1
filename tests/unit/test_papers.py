"""docs/papers.md and the code name each other."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAPERS = ("harivo", "vidrd", "artv", "dreamvideo")
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:model_patches|training|evaluation)\.[\w.]+)`", PAGE)))


def public(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {name for name in defined if not name.startswith("_")}


def rows() -> list[list[str]]:
    """The cells of every row of the tables, without the header rows."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
    return [row for row in cells if row[0] not in {"Where", "Paper"} and not row[0].startswith("--")]


@pytest.mark.parametrize("name", NAMED)
def test_every_name_on_the_page_exists(name):
    module, function = name.rsplit(".", 1)
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    assert path.is_file(), f"no module {module}"
    assert function in public(path), f"{module} has no {function}"


def test_every_row_names_a_function_and_says_whose_it_is():
    assert len(rows()) > 15
    for row in rows():
        _where, topic, function, status = row
        if function != "not yet":
            assert re.fullmatch(r"`[\w.]+`", function), row
            assert re.match("stated|reconstructed|ours", status), row
        assert topic, row


@pytest.mark.parametrize("paper", PAPERS)
def test_every_public_function_of_a_paper_is_on_the_page(paper):
    missing = []
    for path in sorted((ROOT / "model_patches" / paper).glob("*.py")):
        module = f"model_patches.{paper}.{path.stem}"
        missing += [f"{module}.{name}" for name in sorted(public(path)) if f"{module}.{name}" not in NAMED]
    # data classes that are arguments or results of functions on the page
    assert [name for name in missing if name not in {"model_patches.harivo.mitigating.Effect"}] == []
