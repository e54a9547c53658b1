"""Hostile graphs: texts, numbers and links of nodes that a program, and not the editor, has written."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from ...rendering.formats import check_format
from ...rendering.graph import input_hashes, source_of
from ...rendering.loop import parse_takes
from ...rendering.names import check_name
from ...training.data.footage import prompt_of
from ..common.pocket_host import start_comfyui
from .damage import as_text, changed_json, damaged, odd_value
from .harness import Case, Kind
from .naming import Named, named

TEXTS = (
    "a cat\n24: a dog\n3: a bird",
    "99999999999: a cat",
    "0: nothing",
    ": x",
    "1:",
    "9" * 5000 + ": x",
    "a\n" * 100_000,
    '"0": "a garden",\n"16": "winter"',
    "٣: x\n²: y",
    "\u0000\ud800",
    "7:2, 9, 3:0",
    "0, last, 3-5",
    '""\nrising',
)
GRAPH = {
    "1": {"class_type": "Load", "inputs": {"name": "a"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["1", 1]}},
    "3": {"class_type": "StillMotion_LongVideo", "inputs": {"model": ["1", 0], "positive": ["2", 0], "seed": 3}},
}


@cache
def _parsers() -> dict[str, Callable[[str], Any]]:
    """The functions of nodes that read a text."""
    start_comfyui(cpu=True)
    from ...model_patches.artv.story import parse_story
    from ...model_patches.comfy_host.conditions.control import parse_frames
    from ...model_patches.comfy_host.conditions.prompts import parse_prompts
    from ...model_patches.dreamvideo.stages import parse_stages

    return {
        "story": parse_story,
        "prompts": parse_prompts,
        "stages": parse_stages,
        "takes": parse_takes,
        "frames": lambda text: parse_frames(text, 16),
        "name": check_name,
    }


def _numbers(value: Any) -> Any:
    from ...model_patches.vidrd.reuse import Config
    from ...nodes.render.base import rate_of

    size = value if isinstance(value, int) and not isinstance(value, bool) else 64
    check_format("h264-mp4", size, size)
    if isinstance(value, float | int) and not isinstance(value, bool):
        Config(recycle=value)
        return rate_of(min(max(float(value), 0.1), 240.0)) if value == value and abs(value) < 1e300 else None
    return None


def _graph(graph: Any) -> Any:
    prompt_of(as_text(graph))
    if not isinstance(graph, dict) or "3" not in graph:
        return None
    return input_hashes(graph, "3", ("model", "positive")), source_of(graph, "3", "positive")


def warm(folder: Path) -> Case:
    for parse in _parsers().values():
        named_or_none(lambda parse=parse: parse("1"))
    return Case(folder, "graph", GRAPH)


def named_or_none(work: Callable[[], Any]) -> None:
    try:
        named(work)
    except Named:
        return


def make(rng: random.Random, folder: Path) -> Case:
    label = rng.choice((*_parsers(), "graph", "graph", "number"))
    if label == "graph":
        return Case(folder, label, _valid(changed_json(GRAPH, rng)))
    if label == "number":
        return Case(folder, label, odd_value(rng))
    text = rng.choice(TEXTS)
    if rng.random() < 0.6:
        text = damaged(text.encode("utf-8", "surrogatepass"), rng)[0].decode("utf-8", "replace")
    return Case(folder, label, text)


def _valid(graph: Any) -> Any:
    """What ComfyUI passes on: it refuses every node that is no table with a class and inputs."""
    nodes = graph.items() if isinstance(graph, dict) else ()
    is_node = lambda node: isinstance(node, dict) and isinstance(node.get("inputs"), dict) and "class_type" in node  # noqa: E731
    return {number: node for number, node in nodes if is_node(node)}


def read(case: Case) -> object:
    value: Any = case.expected
    if case.label == "graph":
        return named(lambda: _graph(value))
    if case.label == "number":
        return named(lambda: _numbers(value))
    return named(lambda: _parsers()[case.label](value))


def is_right(_case: Case, _value: object) -> bool:
    return True


KIND = Kind("graphs", make, read, is_right, (Named,), warm)
