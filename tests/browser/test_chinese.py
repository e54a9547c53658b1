"""The editor in Chinese: names, sockets and menus of our nodes come from locales/zh."""

from collections.abc import Iterator

import pytest
from devkit.editor import Editor

pytestmark = pytest.mark.browser

SETTING = "Comfy.Locale"
PLACED = """name => {
  const node = LiteGraph.createNode(name);
  window.app.rootGraph.add(node);
  const shown = {
    title: node.title,
    inputs: Object.fromEntries(node.inputs.map(slot => [slot.name, slot.label ?? slot.localized_name])),
    widgets: Object.fromEntries(node.widgets.map(widget => [widget.name, widget.label])),
    category: LiteGraph.registered_node_types[name].category,
  };
  window.app.rootGraph.remove(node);
  return shown;
}"""


@pytest.fixture
def chinese(editor: Editor) -> Iterator[Editor]:
    editor.setting(SETTING, "zh")
    editor.open()
    yield editor
    editor.setting(SETTING, "en")
    editor.open()


def test_a_node_that_is_placed_speaks_chinese_and_keeps_its_names_inside(chinese: Editor):
    node = chinese.evaluate(PLACED, "StillMotion_ApplyMotionModel")
    assert node["title"] == "应用运动模型"
    assert node["category"] == "StillMotion/运动"
    assert node["inputs"]["motion_model"] == "运动模型"
    assert node["widgets"]["frames"] == "帧数"
