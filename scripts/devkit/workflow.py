"""The bundled workflows, and how the demo puts a prompt, a seed and a number of frames into one.

A workflow says by its node titles what may be set from outside: a CLIPTextEncode called "Prompt", one called
"Negative prompt", a PrimitiveInt called "Frames". The seed is every input `seed` or `noise_seed` that is a number.
"""

import json
from pathlib import Path

from .files import ROOT, Failed

FOLDER = ROOT / "workflows"
API = ".api.json"
# below it, not in it: ComfyUI offers every .json in `workflows` as a template, and an API file would open as nothing
API_FOLDER = FOLDER / "api"


def names() -> list[str]:
    return sorted(path.name.removesuffix(API) for path in API_FOLDER.glob(f"*{API}"))


def load(name: str) -> dict:
    """The API form of a bundled workflow, or of a file of the user's."""
    path = API_FOLDER / f"{name}{API}"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise Failed(
            f"There is no workflow {name!r}. Bundled are: {', '.join(names())}; or give the path of an API file."
        )
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Failed(f"{path} is not JSON: {error}") from None
    if not isinstance(prompt, dict) or not all(
        isinstance(node, dict) and "class_type" in node for node in prompt.values()
    ):
        raise Failed(f"{path} is not in API form. In the editor choose Workflow, then Export (API).")
    return prompt


def adapt(
    prompt: dict,
    *,
    text: str | None = None,
    negative: str | None = None,
    seed: int | None = None,
    frames: int | None = None,
) -> dict:
    """A copy of the workflow in which what was given replaces what was there."""
    prompt = json.loads(json.dumps(prompt))
    titled = [("Prompt", "text", text), ("Negative prompt", "text", negative), ("Frames", "value", frames)]
    for title, key, value in titled:
        if value is not None:
            _titled(prompt, title)["inputs"][key] = value
    if seed is not None:
        found = [(node, key) for node in prompt.values() for key in ("seed", "noise_seed") if _number(node, key)]
        if not found:
            raise Failed(
                "This workflow has no seed to set: no node has an input `seed` or `noise_seed` that is a number."
            )
        for node, key in found:
            node["inputs"][key] = seed
    return prompt


def up_to(prompt: dict, class_type: str) -> dict:
    """The nodes of that class and all that they are made from."""
    left = [number for number, node in prompt.items() if node["class_type"] == class_type]
    kept: dict = {}
    while left:
        number = left.pop()
        kept[number] = prompt[number]
        links = [value for value in prompt[number]["inputs"].values() if isinstance(value, list)]
        left += [link[0] for link in links if link[0] not in kept]
    return kept


def title(prompt: dict, number: str) -> str:
    node = prompt.get(number, {})
    return node.get("_meta", {}).get("title") or node.get("class_type", number)


def seeds(prompt: dict) -> list[int]:
    return [node["inputs"][key] for node in prompt.values() for key in ("seed", "noise_seed") if _number(node, key)]


def _number(node: dict, key: str) -> bool:
    return isinstance(node["inputs"].get(key), int)


def _titled(prompt: dict, wanted: str) -> dict:
    found = [node for number, node in prompt.items() if title(prompt, number).lower() == wanted.lower()]
    if len(found) != 1:
        raise Failed(
            f"This workflow has {len(found)} nodes titled {wanted!r}; exactly one is needed to set it from here."
        )
    return found[0]
