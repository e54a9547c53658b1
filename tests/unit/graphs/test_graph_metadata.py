"""Properties in the editor forms, with which somebody who receives a graph finds the pack and the weights."""

import json
import tomllib
from pathlib import Path

import pytest
from devkit import metadata, workflow
from devkit.files import PACK

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SHORT = {template.editor_file: template.name for template in workflow.templates().values()}
FOLDERS = ("checkpoints", "loras", "controlnet", "animatediff_models", "animatediff_motion_lora")  # in models/
FORMS = {SHORT.get(path, path.stem): json.loads(path.read_text(encoding="utf-8")) for path in metadata.editor_forms()}


def test_every_bundled_graph_is_looked_at():
    assert FORMS.keys() >= set(workflow.names())
    assert PROJECT["project"]["name"] == PACK


@pytest.mark.parametrize("name", FORMS)
def test_every_node_names_its_pack_and_version(name: str):
    """If this fails after a graph or the version has changed: python3 scripts/dev.py workflows --metadata"""
    floor = PROJECT["tool"]["comfy"]["requires-comfyui"].removeprefix(">=")
    nodes = list(metadata.nodes_of(FORMS[name]))
    assert [node for node in nodes if node["type"].startswith("StillMotion_")]
    for node in nodes:
        is_ours = node["type"].startswith("StillMotion_")
        expected = (PACK, PROJECT["project"]["version"]) if is_ours else ("comfy-core", floor)
        assert (node["properties"].get("cnr_id"), node["properties"].get("ver")) == expected, node["type"]


@pytest.mark.parametrize("name", FORMS)
def test_every_file_that_a_user_must_fetch_has_its_address(name: str):
    """Files of the pack need no entry; every other weight file in a widget needs one."""
    for node in metadata.nodes_of(FORMS[name]):
        values = [value for value in node.get("widgets_values") or [] if isinstance(value, str)]
        files = [v for v in values if v.endswith((".safetensors", ".ckpt", ".pt")) and not v.startswith("pocket/")]
        models = node["properties"].get("models", [])
        assert [model["name"] for model in models] == files, node["type"]
        for model in models:
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith(f"/resolve/main/{model['name']}")
            assert model["directory"] in FOLDERS


def test_graphs_of_photo_models_name_their_files():
    named = {
        name: {model["name"] for node in metadata.nodes_of(form) for model in node["properties"].get("models", [])}
        for name, form in FORMS.items()
    }
    photo = {name for name in FORMS if name.endswith("_sd15")}
    assert photo
    assert {name for name, models in named.items() if models} == photo
    for name in photo:
        assert named[name] == {model["name"] for model in metadata.files_of(workflow.load(name))}
        assert "v1-5-pruned-emaonly-fp16.safetensors" in named[name]


def test_describing_a_graph_again_changes_nothing_but_corrects_old_entries():
    form = json.loads(json.dumps(FORMS["text_to_video_sd15"]))
    metadata.describe(form)
    assert form == FORMS["text_to_video_sd15"]
    first = next(node for node in metadata.nodes_of(form) if node["properties"].get("models"))
    first["properties"] |= {"ver": "0.0.1", "models": []}
    metadata.describe(form)
    assert form == FORMS["text_to_video_sd15"]


def test_nodes_inside_subgraphs_are_described_and_frames_and_notes_are_not():
    inner = {"id": 1, "type": "StillMotion_LoadPocket", "properties": {}}
    frame, note = ({"id": i, "type": kind, "properties": {}} for i, kind in ((2, "abc-def"), (3, "Note")))
    graph = {"nodes": [frame, note], "definitions": {"subgraphs": [{"id": "abc-def", "nodes": [inner]}]}}
    metadata.describe(graph)
    assert inner["properties"] == {"cnr_id": PACK, "ver": PROJECT["project"]["version"]}
    assert frame["properties"] == note["properties"] == {}
