"""Subgraph blueprints in subgraphs/: each file is what its definition in bundle/blueprints.py says."""

import json
from typing import Any

import pytest
from bundle import blueprints

BLUEPRINTS = [build() for build in blueprints.BLUEPRINTS]
IDS = [blueprint.title for blueprint in BLUEPRINTS]
EVERY = pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=IDS)


def stored(blueprint: blueprints.Blueprint) -> tuple[dict[str, Any], dict[str, Any]]:
    """The node on the canvas, and the definition of what is in it."""
    graph = json.loads(blueprint.file.read_text(encoding="utf-8"))
    (node,), (definition,) = graph["nodes"], graph["definitions"]["subgraphs"]
    assert node["type"] == definition["id"]
    assert graph["extra"]["BlueprintDescription"] == definition["description"] == blueprint.about
    assert graph["extra"]["BlueprintSearchAliases"] == list(blueprint.aliases)
    return node, definition


def test_there_is_one_file_of_each_and_no_others():
    assert {path.name for path in blueprints.FOLDER.iterdir()} == {blueprint.file.name for blueprint in BLUEPRINTS}


@EVERY
def test_the_node_shows_the_inputs_and_outputs_that_it_should(blueprint: blueprints.Blueprint):
    node, definition = stored(blueprint)
    assert node["title"] == definition["name"] == blueprint.title
    assert [slot["name"] for slot in node["inputs"]] == list(blueprint.inputs)
    assert [slot["name"] for slot in definition["inputs"]] == list(blueprint.inputs)
    assert [slot["name"] for slot in node["outputs"]] == list(blueprint.outputs)
    assert all(slot["linkIds"] for slot in (*definition["inputs"], *definition["outputs"])), "each leads somewhere"
    titles = {node["_meta"]["title"]: node["inputs"] for node in blueprint.nodes.values()}
    widgets = [name for name, slot in zip(blueprint.inputs, node["inputs"], strict=True) if "widget" in slot]
    inside = {name: titles[title].get(socket) for name, ((title, socket), *_) in blueprint.inputs.items()}
    assert node["widgets_values"] == [inside[name] for name in widgets]


@EVERY
def test_the_subgraph_is_the_graph_of_the_definition(blueprint: blueprints.Blueprint):
    _, definition = stored(blueprint)
    kinds = {node["_meta"]["title"]: node["class_type"] for node in blueprint.nodes.values()}
    by_kind = {kind: title for title, kind in kinds.items()}
    # a node with the title of its kind is stored without one
    titles = {node["id"]: node.get("title", by_kind[node["type"]]) for node in definition["nodes"]}
    assert {titles[node["id"]]: node["type"] for node in definition["nodes"]} == kinds
    numbers = {number: node["_meta"]["title"] for number, node in blueprint.nodes.items()}
    links = {
        (titles[link["origin_id"]], link["origin_slot"], titles[link["target_id"]])
        for link in definition["links"]
        if link["origin_id"] in titles and link["target_id"] in titles
    }
    expected = {
        (numbers[value[0]], value[1], node["_meta"]["title"])
        for node in blueprint.nodes.values()
        for value in node["inputs"].values()
        if isinstance(value, list)
    }
    assert links == expected


def test_no_input_of_a_user_is_of_this_machine():
    """Only bundled files are named."""
    for blueprint in BLUEPRINTS:
        node, _ = stored(blueprint)
        files = [value for value in node["widgets_values"] if str(value).endswith(".safetensors")]
        assert files
        assert all(file.startswith("pocket/") for file in files)
