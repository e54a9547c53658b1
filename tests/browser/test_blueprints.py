"""Subgraph blueprints as a user meets them: in the node library, placed on the canvas, and run."""

from pathlib import Path

import pytest
from bundle import blueprints
from devkit.editor import Editor

pytestmark = pytest.mark.browser

BLUEPRINTS = [build() for build in blueprints.BLUEPRINTS]
IDS = [blueprint.title for blueprint in BLUEPRINTS]
# what the editor offers in its node library: the definitions of its store of nodes, blueprints included
OFFERED = """() => {
  const app = document.querySelector('#vue-app').__vue_app__;
  const store = app.config.globalProperties.$pinia._s.get('subgraph');
  return store.subgraphBlueprints.map(def => ({
    name: def.name, title: def.display_name, category: def.category, about: def.description}));
}"""
# placing one, as a click in the node library does; then the pocket's loader and a video behind it
PLACE = """async ([name, sockets]) => {
  const app = document.querySelector('#vue-app').__vue_app__;
  const pinia = app.config.globalProperties.$pinia;
  const blueprint = pinia._s.get('subgraph').getBlueprint(name);
  await window.app.loadGraphData(blueprint, true, true, 'blueprint');
  const graph = window.app.rootGraph;
  const placed = graph._nodes.find(node => node.subgraph);
  const add = (type, x, y) => {
    const node = LiteGraph.createNode(type);
    graph.add(node);
    node.pos = [x, y];
    return node;
  };
  const pocket = add('StillMotion_LoadPocket', -700, 0);
  const slot = wanted => placed.inputs.findIndex(input => input.name === wanted);
  for (const [number, wanted] of [[0, 'model'], [1, 'clip'], [2, 'vae']])
    if (slot(wanted) >= 0) pocket.connect(number, placed, slot(wanted));
  if (slot('image') >= 0) add('StillMotion_PocketPicture', -700, 300).connect(0, placed, slot('image'));
  const [image] = [placed.outputs.findIndex(output => output.type === 'IMAGE')];
  if (image >= 0) placed.connect(image, add('PreviewImage', placed.size[0] + 100, 0), 0);
  for (const node of placed.subgraph._nodes)
    for (const widget of node.widgets ?? []) if (widget.name === 'steps') widget.value = 2;
  for (const widget of placed.widgets ?? []) {
    if (widget.name === 'steps') widget.value = 2;
    if (widget.name === 'frames') widget.value = 8;
    if (widget.name === 'clips') widget.value = 2;
    if (widget.name === 'prompt') widget.value = 'a green square moving left on a gray background';
  }
  const unknown = placed.subgraph._nodes.map(node => node.type).filter(type => !LiteGraph.registered_node_types[type]);
  return {
    title: placed.title,
    unknown,
    inputs: placed.inputs.map(input => input.name),
    outputs: placed.outputs.map(output => output.name),
    widgets: (placed.widgets ?? []).map(widget => widget.name),
  };
}"""


@pytest.fixture
def clean(editor: Editor) -> Editor:
    editor.problems.clear()
    return editor


def test_every_blueprint_is_offered_in_the_node_library(clean: Editor):
    entries = {entry["title"]: entry for entry in clean.evaluate(OFFERED) if entry["title"] in IDS}
    assert set(entries) == set(IDS)
    for blueprint in BLUEPRINTS:
        assert entries[blueprint.title]["about"] == blueprint.about
        assert "StillMotion" in entries[blueprint.title]["category"]


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=IDS)
def test_a_blueprint_that_is_placed_and_connected_runs(clean: Editor, blueprint: blueprints.Blueprint, shots: Path):
    names = {entry["title"]: entry["name"] for entry in clean.evaluate(OFFERED)}
    placed = clean.evaluate(PLACE, [names[blueprint.title], list(blueprint.inputs)])
    assert placed["unknown"] == []
    assert placed["title"] == blueprint.title
    assert placed["inputs"] == list(blueprint.inputs)
    assert placed["outputs"] == list(blueprint.outputs)
    clean.show_all()
    clean.shot(shots / f"{blueprint.title}.png")
    ended = clean.run()
    assert ended["kind"] == "execution_success", ended["detail"]
    clean.show_all()
    clean.shot(shots / f"{blueprint.title}.run.png")
    assert clean.problems == []
