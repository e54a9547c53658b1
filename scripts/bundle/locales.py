"""The texts of the nodes as translation files for ComfyUI's editor: `locales/<language>/*.json`.

The English files are written from the schemas; a translation has the same keys with translated texts.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from devkit.files import PACK, ROOT

FOLDER = ROOT / "locales"
# parts of menu paths that the editor itself translates
CORE_CATEGORIES = {"loaders", "sampling", "guidance", "video", "noise", "image", "latent", "conditioning", "sigmas"}
TYPES = {
    "STILLMOTION_ARTV": "ART-V model",
    "STILLMOTION_ARTV_OPTIONS": "autoregressive options",
    "STILLMOTION_GRADIENT_OPTIONS": "gradient options",
    "STILLMOTION_GUIDANCE_READOUT": "guidance readout",
    "STILLMOTION_MOTION_MODEL": "motion model",
    "STILLMOTION_OUTPUT_OPTIONS": "output options",
    "STILLMOTION_PROMPT_SCHEDULE": "prompt schedule",
    "STILLMOTION_RENDER_AGAIN": "render again",
    "STILLMOTION_RETENTION_BRANCH": "retention branch",
    "STILLMOTION_REUSE_OPTIONS": "reuse options",
    "STILLMOTION_SPARSECTRL": "SparseCtrl network",
    "STILLMOTION_STAGE_OPTIONS": "stage options",
    "STILLMOTION_STAGE_PROMPTS": "stage prompts",
    "STILLMOTION_STORY": "story",
}
SYNTAX = "{}@|"  # characters with a special meaning in the editor's translation library


def node_texts(schemas: Iterable[Any]) -> dict[str, Any]:
    """`nodeDefs.json` in English: names, descriptions and tooltips of V3 schemas, by node id."""
    return {schema.node_id: _node(schema) for schema in sorted(schemas, key=lambda schema: schema.node_id)}


def _node(schema: Any) -> dict[str, Any]:
    inputs = {}
    for socket in schema.inputs:
        inputs[socket.id] = _texts(socket.display_name or socket.id, socket.tooltip)
        if getattr(socket, "control_after_generate", None):
            inputs["control_after_generate"] = {"name": "control after generate"}
    outputs = {
        str(number): _texts(socket.display_name or socket.id or socket.io_type, socket.tooltip)
        for number, socket in enumerate(schema.outputs)
    }
    node = {"display_name": schema.display_name, "description": schema.description}
    return node | ({"inputs": inputs} if inputs else {}) | ({"outputs": outputs} if outputs else {})


def _texts(name: str, tooltip: str | None) -> dict[str, str]:
    return {"name": name} | ({"tooltip": tooltip} if tooltip else {})


def other_texts(schemas: Iterable[Any]) -> dict[str, Any]:
    """`main.json` in English: menu paths, socket types, and the pack's name in the template browser."""
    parts = {part for schema in schemas for part in schema.category.split("/")} - CORE_CATEGORIES
    return {
        "nodeCategories": {part: part for part in sorted(parts)},
        "dataTypes": TYPES,
        "templateWorkflows": {"category": {PACK: "StillMotion"}},
    }


def flat(texts: dict[str, Any], path: str = "") -> dict[str, str]:
    """Path of keys, joined by "/" -> text."""
    pairs: dict[str, str] = {}
    for key, value in texts.items():
        pairs |= flat(value, f"{path}{key}/") if isinstance(value, dict) else {path + key: value}
    return pairs


def read(language: str, name: str) -> dict[str, Any]:
    path = FOLDER / language / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(language: str, name: str, texts: dict[str, Any]) -> None:
    path: Path = FOLDER / language / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def like(pattern: dict[str, Any], texts: dict[str, Any]) -> dict[str, Any]:
    """The texts with exactly the keys of the pattern and in its order; a missing text is empty."""
    return {
        key: like(value, texts.get(key, {})) if isinstance(value, dict) else texts.get(key, "")
        for key, value in pattern.items()
    }
