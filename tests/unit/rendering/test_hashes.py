"""The hashes that name a job and say what a clip depends on do not depend on order, ids and titles."""

import hashlib
import json

import pytest

from stillmotion.rendering.graph import input_hashes, savers_of, source_of
from stillmotion.rendering.job import differences, job_hash
from stillmotion.rendering.planning import chain_hashes

PROMPT = {
    "1": {"class_type": "LoadModel", "inputs": {"name": "a"}, "is_changed": ["x"]},
    "2": {"class_type": "Text", "inputs": {"text": "cat", "model": ["1", 1]}},
    "9": {"class_type": "Video", "inputs": {"model": ["1", 0], "text": ["2", 0], "seed": 5, "size": [64, 64]}},
}


def sha(content) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_a_job_has_twelve_digits_of_the_hash_of_its_identity_in_the_order_of_the_keys():
    identity = {"seed": 1, "fps": 8, "graph": {"model": "a", "clip": "b"}}
    other_order = {"graph": {"clip": "b", "model": "a"}, "fps": 8, "seed": 1}
    assert job_hash(identity) == job_hash(other_order) == sha(json.dumps(other_order | {}, sort_keys=True))
    assert job_hash(identity) != job_hash(identity | {"seed": 2})


def test_an_input_has_the_hash_of_all_nodes_before_it():
    model = sha(["LoadModel", {"name": "a"}, ["x"]])
    text = sha(["Text", {"model": [model, 1], "text": "cat"}, None])
    hashes = input_hashes(PROMPT, "9", ("model", "text", "seed", "size", "mask"))
    assert hashes == {"model": sha([model, 0]), "text": sha([text, 0])}


def test_ids_do_not_matter_but_outputs_and_changed_files_do():
    names = {"1": "7:3", "2": "x", "9": "y"}
    renamed = json.loads(json.dumps(PROMPT))
    renamed = {names[number]: node for number, node in renamed.items()}
    renamed["x"]["inputs"]["model"][0] = "7:3"
    renamed["y"]["inputs"] |= {"model": ["7:3", 0], "text": ["x", 0]}
    first = input_hashes(PROMPT, "9", ("model", "text"))
    assert input_hashes(renamed, "y", ("model", "text")) == first
    output = PROMPT | {"9": {"class_type": "Video", "inputs": {"model": ["1", 1], "text": ["2", 0]}}}
    assert input_hashes(output, "9", ("model", "text")) == {
        **first,
        "model": sha([sha(["LoadModel", {"name": "a"}, ["x"]]), 1]),
    }
    changed = input_hashes(PROMPT | {"1": PROMPT["1"] | {"is_changed": ["y"]}}, "9", ("model", "text"))
    assert all(changed[name] != first[name] for name in first)


def test_a_node_inside_a_subgraph_depends_on_the_whole_prompt():
    whole = input_hashes(PROMPT, "9:4", ("model",))
    assert list(whole) == ["graph"]
    assert len(whole["graph"]) == 12
    assert input_hashes(dict(reversed(PROMPT.items())), "9:4", ("text",)) == whole
    other = PROMPT | {"2": {"class_type": "Text", "inputs": {"text": "dog", "model": ["1", 1]}}}
    assert input_hashes(other, "9:4", ("model",)) != whole


@pytest.mark.parametrize("value", [["1"], ["1", 0, 0], ["1", "0"], ["3", 0], "10", None])
def test_only_a_node_and_the_number_of_its_output_are_a_link(value):
    prompt = PROMPT | {"9": {"class_type": "Video", "inputs": {"model": value}}}
    assert input_hashes(prompt, "9", ("model",)) == {}
    assert source_of(prompt, "9", "model") == ""


def test_the_source_of_an_input_is_the_node_that_it_is_linked_to():
    assert source_of(PROMPT, "9", "text") == "2"
    assert source_of(PROMPT, "9", "seed") == source_of(PROMPT, "9", "mask") == source_of(PROMPT, "5", "text") == ""


def test_a_cycle_ends():
    prompt = {"1": {"class_type": "A", "inputs": {"x": ["2", 0]}}, "2": {"class_type": "B", "inputs": {"x": ["1", 0]}}}
    inner = sha(["B", {"x": ["", 0]}, None])
    assert input_hashes({**prompt, "9": {"inputs": {"x": ["1", 0]}}}, "9", ("x",)) == {
        "x": sha([sha(["A", {"x": [inner, 0]}, None]), 0])
    }


def test_the_inputs_of_a_clip_are_hashed_with_those_of_all_clips_before_it():
    second = sha(" b")
    third = sha(f"{second} ")
    assert chain_hashes(4, lambda clip: ["", "b", "", "d"][clip]) == ["", second, third, sha(f"{third} d")]


def test_differences_name_new_and_removed_settings_and_omit_long_values():
    old = {"seed": 1, "graph": {"model": "a", "vae": "v"}, "text": "x" * 24, "gone": 0}
    new = {"seed": 1, "graph": {"model": "b", "vae": "v"}, "text": "y" * 24, "fps": 8}
    assert differences(old, new) == ["fps: new", "gone: gone", "graph.model: a -> b", f"text: {'x' * 24} -> {'y' * 24}"]
    assert differences({"text": "x" * 25}, {"text": ""}) == ["text: changed"]
    assert differences({"graph": {}}, {"graph": 1}) == ["graph: {} -> 1"]


def test_a_saver_is_a_save_node_whose_model_went_through_the_class():
    def node(class_type, **inputs):
        return {"class_type": class_type, "inputs": inputs}

    prompt = {
        "1": node("LoadModel", name="a"),
        "2": node("Apply", model=["1", 0]),
        "3": node("Merge", model1=["1", 0], model2=["2", 0], clip=["4", 0]),
        "4": node("Encode", text=["2", 0]),
        "5": node("ModelSave", model=["3", 0], prefix="x"),  # through the second input of the merge
        "6": node("CheckpointSave", model=["1", 0]),  # not through the class
        "7": node("SaveImage", images=["2", 0]),  # no MODEL
        "8": node("Sample", model=["2", 0]),  # does not save
        "9": node("save_other", model=["2", 0]),
        "10": node("ModelSave", model=["4", 0]),  # the text is no MODEL
        "11": node("ModelSave", model="2"),
        "12": node("ModelSave", model=["13", 0]),
        "13": node("Loop", model=["13", 0], model_b=["2", 0]),
        "14": None,
        "15": {"class_type": "ModelSave"},
    }
    assert savers_of(prompt, "Apply") == ["5", "9", "12"]
    assert savers_of(prompt, "LoadModel") == ["5", "6", "9", "12"]
    assert savers_of(prompt, "Other") == []
