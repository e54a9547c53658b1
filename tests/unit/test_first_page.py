"""README.md names every node and every template that the pack has."""

import json
import tomllib

import pytest


@pytest.fixture(scope="module")
def page(root):
    return (root / "README.md").read_text(encoding="utf-8")


def test_every_node_is_on_the_first_page(page, root):
    nodes = json.loads((root / "tests" / "golden" / "object_info.json").read_text(encoding="utf-8"))
    assert [node["display_name"] for node in nodes.values() if node["display_name"] not in page] == []


def test_every_template_is_on_the_first_page_with_its_sentence(page, root):
    templates = tomllib.loads((root / "workflows" / "templates.toml").read_text(encoding="utf-8"))["template"]
    rows = [f"| {each['title']} | `{each['name']}` | {each['about']} |" for each in templates]
    assert [row for row in rows if row not in page] == []
