"""The editor with Nodes 2.0 on, where Vue components are drawn in place of the canvas."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from devkit import workflow
from devkit.editor import Editor

pytestmark = pytest.mark.browser

NAME = "text_to_video_mitigating_gradient_pocket"
SETTING = "Comfy.VueNodes.Enabled"
FEW_STEPS = """() => {
  for (const node of window.app.rootGraph._nodes)
    for (const widget of node.widgets ?? []) if (widget.name === 'steps') widget.value = 3;
}"""
NODES = "() => window.app.rootGraph._nodes.map(node => ({id: String(node.id), type: node.type, title: node.title}))"
# what is drawn of a node: its text, its size on the screen, and the names of its widgets
DRAWN = """id => {
  const element = document.querySelector(`[data-node-id="${id}"]`);
  if (!element) return null;
  const box = element.getBoundingClientRect();
  return {text: element.innerText, width: box.width, height: box.height};
}"""
TABLE = """id => {
  const table = document.querySelector(`[data-node-id="${id}"] pre`);
  if (!table) return null;
  const box = table.getBoundingClientRect();
  const node = table.closest('[data-node-id]').getBoundingClientRect();
  return {text: table.textContent, width: box.width / node.width, height: box.height / node.height};
}"""


@pytest.fixture
def vue(editor: Editor) -> Iterator[Editor]:
    editor.setting(SETTING, True)
    yield editor
    editor.setting(SETTING, False)


def test_every_node_is_drawn_and_the_readout_shows_its_table(vue: Editor, shots: Path):
    vue.drop(workflow.templates()[NAME].editor_file)
    vue.show_all()
    nodes = vue.evaluate(NODES)
    for node in nodes:
        view = vue.evaluate(DRAWN, node["id"])
        assert view is not None, f"{node['title']} is not drawn"
        assert node["title"] in view["text"]
        assert view["width"] > 40, node["title"]
        assert view["height"] > 20, node["title"]
    gradient = vue.evaluate(DRAWN, of_type(nodes, "StillMotion_MitigatingGradient"))
    assert all(name in gradient["text"] for name in ("alpha", "frames", "kernel", "readout"))

    vue.evaluate(FEW_STEPS)
    ended = vue.run()
    assert ended["kind"] == "execution_success", ended["detail"]
    vue.show_all()
    vue.shot(shots / "nodes_2.png")
    table = vue.evaluate(TABLE, of_type(nodes, "StillMotion_GuidanceReadout"))
    assert table is not None, "the readout has no table"
    assert table["text"].startswith("mitigating gradient: alpha")
    assert len(table["text"].splitlines()) == 2 + 3
    assert table["width"] > 0.8, "the table is as wide as the node"
    assert table["height"] > 0.3, "the table has room on the node"
    assert vue.problems == []


def of_type(nodes: list[dict], class_type: str) -> str:
    (number,) = [node["id"] for node in nodes if node["type"] == class_type]
    return number
