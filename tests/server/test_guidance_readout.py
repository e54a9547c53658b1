"""The readout of the mitigating gradient in a real graph: the right table, also when ComfyUI uses its cache."""

import copy

import pytest
from devkit import workflow
from devkit.client import Client

pytestmark = pytest.mark.server

NAME = "text_to_video_mitigating_gradient_pocket"


def number_of(prompt: dict, class_type: str) -> str:
    (number,) = [number for number, node in prompt.items() if node["class_type"] == class_type]
    return number


@pytest.fixture
def prompt() -> dict:
    """The bundled workflow with 3 steps of 4 frames, without the nodes for the video file."""
    whole = workflow.adapt(workflow.load(NAME), frames=4, seed=21)
    nodes, waiting = {}, [number_of(whole, "StillMotion_GuidanceReadout")]
    while waiting:
        number = waiting.pop()
        nodes[number] = whole[number]
        waiting += [value[0] for value in whole[number]["inputs"].values() if isinstance(value, list)]
    nodes[number_of(nodes, "KSampler")]["inputs"]["steps"] = 3
    return nodes


def tables(client: Client, prompt: dict) -> dict[str, str]:
    """Readout node -> its table, as the editor receives it."""
    outputs = client.run(prompt).check().outputs
    return {number: output["text"][0] for number, output in outputs.items() if "text" in output}


def test_the_table_has_a_row_for_every_step(client: Client, prompt: dict):
    (table,) = tables(client, prompt).values()
    assert table.startswith("mitigating gradient: alpha")
    assert len(table.splitlines()) == 2 + 3


def test_a_repeated_prompt_shows_its_table_again(client: Client, prompt: dict):
    first = tables(client, prompt)
    assert tables(client, prompt) == first
    sampler = number_of(prompt, "KSampler")
    prompt[sampler]["inputs"]["seed"] += 1
    other = tables(client, prompt)
    assert other != first
    prompt[sampler]["inputs"]["seed"] -= 1
    assert tables(client, prompt) == first


def test_two_samplers_of_one_model_have_each_their_table(client: Client, prompt: dict):
    sampler, readout = (number_of(prompt, name) for name in ("KSampler", "StillMotion_GuidanceReadout"))
    prompt["second"], prompt["second readout"] = copy.deepcopy(prompt[sampler]), copy.deepcopy(prompt[readout])
    prompt["second"]["inputs"]["steps"] = 5
    prompt["second readout"]["inputs"]["latent"] = ["second", 0]
    texts = tables(client, prompt)
    assert len(texts[readout].splitlines()) == 2 + 3
    assert len(texts["second readout"].splitlines()) == 2 + 5
    del prompt["second readout"]
    assert tables(client, prompt)[readout] == texts[readout], "the sampler was not run again"


def test_a_readout_that_is_added_later_finds_the_cached_run(client: Client, prompt: dict):
    readout, sampler = (number_of(prompt, name) for name in ("StillMotion_GuidanceReadout", "KSampler"))
    node = prompt.pop(readout)
    prompt["shown"] = {"class_type": "PreviewAny", "inputs": {"source": [sampler, 0]}}
    client.run(prompt).check()
    prompt[readout] = node
    run = client.run(prompt).check()
    assert run.data("progress") == [], "the sampler was not run again"
    assert len(run.outputs[readout]["text"][0].splitlines()) == 2 + 3
