"""Save Checkpoint and Model Save say that the motion model is not in the file, when the graph is queued."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture
def warned(comfy, caplog):
    """warned(prompt) -> what the log says when this graph is queued."""
    from stillmotion.nodes import warn_of_saved_models

    def queue(prompt):
        caplog.clear()
        request = {"prompt": prompt, "client_id": "x"}
        with caplog.at_level(logging.WARNING):
            assert warn_of_saved_models(request) is request
        return caplog.text

    return queue


def graph(save="CheckpointSave", between=(), motion=True):
    """A checkpoint, perhaps a motion model, nodes in between, and a node that saves the MODEL."""
    prompt = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd.safetensors"}}}
    last = "1"
    if motion:
        links = {"model": ["1", 0], "motion_model": ["6", 0]}
        prompt |= {"6": {"class_type": "StillMotion_LoadMotionModel", "inputs": {"motion_name": "m"}}}
        prompt |= {"7": {"class_type": "StillMotion_ApplyMotionModel", "inputs": links}}
        last = "7"
    for number, (kind, name) in enumerate(between):
        prompt[f"b{number}"] = {"class_type": kind, "inputs": {name: [last, 0], "strength": 1.0}}
        last = f"b{number}"
    return prompt | {"9": {"class_type": save, "inputs": {"model": [last, 0], "filename_prefix": "x"}}}


@pytest.mark.parametrize("save", ["CheckpointSave", "ModelSave", "SaveModelOfAnotherPack"])
@pytest.mark.parametrize("between", [(), (("LoraLoaderModelOnly", "model"), ("ModelMergeSimple", "model1"))])
def test_a_saved_model_with_a_motion_model_is_warned_of(warned, save, between):
    text = warned(graph(save, between))
    assert f"{save} (node 9): the motion model will not be in the file" in text
    assert "connect Apply Motion Model after loading" in text


@pytest.mark.parametrize(
    "prompt",
    [
        graph(motion=False),
        graph(save="KSampler"),
        {},
        {"1": "no node"},
        {"1": {"class_type": "CheckpointSave", "inputs": {"model": ["1", 0]}}},
        {"1": {"class_type": None}},
        None,
    ],
)
def test_other_graphs_are_not(warned, prompt):
    assert warned(prompt) == ""


def test_the_handler_is_added_once_the_pack_is_loaded_by_a_server(comfy, monkeypatch):
    from server import PromptServer

    from stillmotion.nodes import StillMotionExtension, warn_of_saved_models

    handlers = []

    class Server:
        def add_on_prompt_handler(self, handler):
            handlers.append(handler)

    def load():
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, StillMotionExtension().on_load()).result()

    monkeypatch.setattr(PromptServer, "instance", Server(), raising=False)
    load()
    assert handlers == [warn_of_saved_models]
    monkeypatch.setattr(PromptServer, "instance", None)
    load()
    assert len(handlers) == 1
