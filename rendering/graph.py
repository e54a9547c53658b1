"""What of a ComfyUI prompt a node depends on: the nodes before it, by what they are, not by their numbers or titles."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

DIGITS = 12


def input_hashes(prompt: Mapping[str, Any], node: str, inputs: tuple[str, ...]) -> dict[str, str]:
    """{input: hash of all that flows into it} for those inputs of a node that are links.

    prompt: {id: {"class_type", "inputs", "is_changed"}}. `is_changed` is what ComfyUI notes of files that a node reads:
    if it would run that node again, the hash differs. A node that is not in the prompt (one within a subgraph) is taken
    to depend on all of it.
    """
    if node not in prompt:
        whole = sorted(_hash(prompt, number, {}) for number in prompt)
        return {"graph": _digest(whole)}
    given, known = prompt[node]["inputs"], {}
    links = {name: given[name] for name in inputs if _is_link(given.get(name), prompt)}
    return {name: _digest([_hash(prompt, link[0], known), link[1]]) for name, link in links.items()}


def source_of(prompt: Mapping[str, Any], node: str, name: str) -> str:
    """The number of the node that an input of a node is linked to; "" where it is not linked."""
    value = prompt.get(node, {}).get("inputs", {}).get(name)
    return value[0] if _is_link(value, prompt) else ""


def _hash(prompt: Mapping[str, Any], number: str, known: dict[str, str]) -> str:
    """Of one node with everything before it. known: hashes of nodes that were met already."""
    if number not in known:
        known[number] = ""  # ComfyUI refuses circles; this one would not end
        node = prompt[number]
        inputs = {
            name: [_hash(prompt, value[0], known), value[1]] if _is_link(value, prompt) else value
            for name, value in node["inputs"].items()
        }
        known[number] = _digest([node["class_type"], inputs, node.get("is_changed")])
    return known[number]


def _is_link(value: Any, prompt: Mapping[str, Any]) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] in prompt and isinstance(value[1], int)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:DIGITS]
