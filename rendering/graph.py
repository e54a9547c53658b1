"""Hashes of the part of a ComfyUI prompt on which a node depends, independent of the ids and titles of nodes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

DIGITS = 12


def input_hashes(prompt: Mapping[str, Any], node: str, inputs: tuple[str, ...]) -> dict[str, str]:
    """{input: hash of everything upstream} for those inputs of a node that are links.

    prompt: {id: {"class_type", "inputs", "is_changed"}}. `is_changed` is ComfyUI's mark for files that a node reads: if
    ComfyUI would run that node again, the hash differs. A node that is not in the prompt, because it is inside a
    subgraph, is assumed to depend on the whole prompt.
    """
    if node not in prompt:
        whole = sorted(_hash(prompt, number, {}) for number in prompt)
        return {"graph": _digest(whole)}
    node_inputs, hashes = prompt[node]["inputs"], {}
    links = {name: node_inputs[name] for name in inputs if _is_link(node_inputs.get(name), prompt)}
    return {name: _digest([_hash(prompt, link[0], hashes), link[1]]) for name, link in links.items()}


def source_of(prompt: Mapping[str, Any], node: str, name: str) -> str:
    """The id of the node to which an input of a node is linked; "" if it is not linked."""
    value = prompt.get(node, {}).get("inputs", {}).get(name)
    return value[0] if _is_link(value, prompt) else ""


def savers_of(prompt: Mapping[str, Any], class_type: str) -> list[str]:
    """The ids of nodes that save a MODEL which went through a node of that class.

    A node saves a MODEL if its class has "save" in its name and it has an input called model. Upstream, a MODEL goes
    through inputs whose names begin with model, as in all of ComfyUI's nodes.
    """

    def passes(number: str, visited: set[str]) -> bool:
        node = prompt.get(number)
        if number in visited or not isinstance(node, Mapping):
            return False
        visited.add(number)
        inputs = node.get("inputs") or {}
        links = [value[0] for name, value in inputs.items() if name.startswith("model") and _is_link(value, prompt)]
        return node.get("class_type") == class_type or any(passes(link, visited) for link in links)

    savers = [
        number
        for number, node in prompt.items()
        if isinstance(node, Mapping)
        and "save" in str(node.get("class_type")).lower()
        and _is_link((node.get("inputs") or {}).get("model"), prompt)
    ]
    return [number for number in savers if passes(prompt[number]["inputs"]["model"][0], set())]


def _hash(prompt: Mapping[str, Any], number: str, hashes: dict[str, str]) -> str:
    """Hash of one node with everything upstream. hashes: those of nodes that were already visited."""
    if number not in hashes:
        hashes[number] = ""  # ends the recursion for cycles, which ComfyUI refuses anyway
        node = prompt[number]
        inputs = {
            name: [_hash(prompt, value[0], hashes), value[1]] if _is_link(value, prompt) else value
            for name, value in node["inputs"].items()
        }
        hashes[number] = _digest([node["class_type"], inputs, node.get("is_changed")])
    return hashes[number]


def _is_link(value: Any, prompt: Mapping[str, Any]) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] in prompt and isinstance(value[1], int)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:DIGITS]
