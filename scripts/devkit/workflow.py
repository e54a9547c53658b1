"""The bundled workflows, and how the demo sets the prompt, the seed and the number of frames in one.

The titles of nodes mark the inputs that can be set: a CLIPTextEncode titled "Prompt", one titled "Negative prompt", a
PrimitiveInt titled "Frames". The seed is every input `seed` or `noise_seed` that is a number.
"""

import functools
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .files import ROOT, Failed

FOLDER = ROOT / "workflows"
API = ".api.json"
# a subfolder, because ComfyUI offers every .json file in `workflows` as a template, and an API file would open empty
API_FOLDER = FOLDER / "api"


@dataclass(frozen=True)
class Template:
    """A bundled workflow: its short name, the title on its card in the editor, and one sentence about it."""

    name: str
    title: str
    about: str

    @property
    def editor_file(self) -> Path:
        return FOLDER / f"{self.title}.json"

    @property
    def thumbnail(self) -> Path:
        """ComfyUI shows the picture of this name on the card."""
        return FOLDER / f"{self.title}.jpg"

    @property
    def api_file(self) -> Path:
        return API_FOLDER / f"{self.name}{API}"


@functools.cache
def templates() -> dict[str, Template]:
    """Short name -> template, in the order in which a newcomer should open them."""
    table = tomllib.loads((FOLDER / "templates.toml").read_text(encoding="utf-8"))
    return {entry["name"]: Template(**entry) for entry in table["template"]}


def names() -> list[str]:
    """The short names of the bundled workflows."""
    return list(templates())


def short_name(text: str) -> str | None:
    """The bundled workflow with this name or title, with or without its leading number; None if there is none."""
    plain = lambda name: re.sub(r"^\d+[ _]|[^a-z0-9.]+", " ", name.lower()).strip()  # noqa: E731
    matches = [name for name, t in templates().items() if plain(text) in (plain(name), plain(t.title))]
    return matches[0] if matches else None


def load(name: str) -> dict:
    """The API form of a bundled workflow, or of the user's own file."""
    bundled = short_name(name)
    path = templates()[bundled].api_file if bundled else Path(name)
    if not path.is_file():
        raise Failed(
            f"There is no workflow {name!r}. Give one of the bundled ones ({', '.join(names())}), or the path of an "
            "API file."
        )
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Failed(f"{path} is not JSON: {error}") from None
    if not isinstance(prompt, dict) or not all(
        isinstance(node, dict) and "class_type" in node for node in prompt.values()
    ):
        raise Failed(f"{path} is not in API form. Export it from the editor with Workflow, Export (API).")
    return prompt


def adapt(
    prompt: dict,
    *,
    text: str | None = None,
    negative: str | None = None,
    seed: int | None = None,
    frames: int | None = None,
) -> dict:
    """A copy of the workflow with the values that are not None."""
    prompt = json.loads(json.dumps(prompt))
    settings = [("Prompt", "text", text), ("Negative prompt", "text", negative), ("Frames", "value", frames)]
    for title, key, value in settings:
        if value is not None:
            _node_titled(prompt, title)["inputs"][key] = value
    if seed is not None:
        seed_inputs = [(node, key) for node in prompt.values() for key in ("seed", "noise_seed") if _number(node, key)]
        if not seed_inputs:
            raise Failed(
                "This workflow has no seed to set: no node has an input `seed` or `noise_seed` that is a number."
            )
        for node, key in seed_inputs:
            node["inputs"][key] = seed
    return prompt


def up_to(prompt: dict, class_type: str) -> dict:
    """The nodes of a class, and all nodes that they depend on."""
    pending = [number for number, node in prompt.items() if node["class_type"] == class_type]
    nodes: dict = {}
    while pending:
        number = pending.pop()
        nodes[number] = prompt[number]
        links = [value for value in prompt[number]["inputs"].values() if isinstance(value, list)]
        pending += [link[0] for link in links if link[0] not in nodes]
    return nodes


def title(prompt: dict, number: str) -> str:
    node = prompt.get(number, {})
    return node.get("_meta", {}).get("title") or node.get("class_type", number)


def seeds(prompt: dict) -> list[int]:
    return [node["inputs"][key] for node in prompt.values() for key in ("seed", "noise_seed") if _number(node, key)]


def _number(node: dict, key: str) -> bool:
    return isinstance(node["inputs"].get(key), int)


def _node_titled(prompt: dict, name: str) -> dict:
    nodes = [node for number, node in prompt.items() if title(prompt, number).lower() == name.lower()]
    if len(nodes) != 1:
        raise Failed(
            f"This workflow has {len(nodes)} nodes titled {name!r}; it needs exactly one, so that its value can be set."
        )
    return nodes[0]
