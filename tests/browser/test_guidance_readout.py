"""The Guidance Readout node shows its table, which is neither saved nor queued."""

from pathlib import Path

import pytest
from devkit import workflow
from devkit.editor import Editor

pytestmark = pytest.mark.browser

TABLE = "\n".join(["mitigating gradient: alpha 40", *(f"{call:>4} {15 / call:>9.3f}" for call in range(1, 26))])
ANNOUNCE = """table => {
  const node = window.app.rootGraph._nodes.find(node => node.type === 'StillMotion_GuidanceReadout');
  const id = String(node.id);
  window.app.api.dispatchCustomEvent(
    'executed', {node: id, display_node: id, output: {text: [table]}, prompt_id: 'test'});
}"""
SHOWN = """() => {
  const node = window.app.rootGraph._nodes.find(node => node.type === 'StillMotion_GuidanceReadout');
  return (node.widgets ?? []).map(widget => widget.value);
}"""


def test_the_table_is_on_the_node_and_nowhere_else(editor: Editor, shots: Path):
    editor.drop(workflow.templates()["text_to_video_mitigating_gradient_pocket"].editor_file)
    editor.show_all()  # the readout is the last column
    prompt = editor.prompt()
    for table in (TABLE, TABLE.replace("alpha 40", "alpha 20")):  # the second run replaces the first
        editor.evaluate(ANNOUNCE, table)
        editor.page.wait_for_timeout(500)
        assert editor.evaluate(SHOWN) == [table]
    assert editor.page.get_by_text("mitigating gradient: alpha 20").first.is_visible()
    editor.show_all()
    editor.shot(shots / "guidance_readout.png")
    assert editor.prompt() == prompt
    (node,) = [node for node in editor.serialized()["nodes"] if node["type"] == "StillMotion_GuidanceReadout"]
    assert "mitigating" not in str(node.get("widgets_values"))
    assert editor.problems == []
