"""The metadata of shared graphs: the pack and the version of every node, and the download addresses of model files.

ComfyUI's editor reads the properties of a node: `cnr_id` and `ver`, to offer the pack of a missing node, and `models`,
to offer the download of a missing file. The names of the fields are those of its workflow format.
"""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import PACK, ROOT

OURS = "StillMotion_"
CORE = "comfy-core"
EDITOR_NODES = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}  # the server knows none of them
FOLDERS = (ROOT / "workflows", ROOT / "subgraphs")
HUGGING_FACE = "https://huggingface.co"
REPOSITORIES = {  # file -> (repository on Hugging Face, folder of models/)
    "v1-5-pruned-emaonly-fp16.safetensors": ("Comfy-Org/stable-diffusion-v1-5-archive", "checkpoints"),
    "mm_sd_v15_v2.ckpt": ("guoyww/animatediff", "animatediff_models"),
    "v2_lora_PanLeft.ckpt": ("guoyww/animatediff", "animatediff_motion_lora"),
    "v3_sd15_mm.ckpt": ("guoyww/animatediff", "animatediff_models"),
    "v3_sd15_adapter.ckpt": ("guoyww/animatediff", "loras"),
    "v3_sd15_sparsectrl_rgb.ckpt": ("guoyww/animatediff", "controlnet"),
    "AnimateLCM_sd15_t2v.ckpt": ("wangfuyun/AnimateLCM", "animatediff_models"),
    "AnimateLCM_sd15_t2v_lora.safetensors": ("wangfuyun/AnimateLCM", "loras"),
}
MODELS = {
    name: {"name": name, "url": f"{HUGGING_FACE}/{repository}/resolve/main/{name}", "directory": folder}
    for name, (repository, folder) in REPOSITORIES.items()
}


def files_of(prompt: dict[str, Any]) -> list[dict[str, str]]:
    """The model files that a graph in API form names, of those with an address."""
    values = [value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, str)]
    return [MODELS[value] for value in values if value in MODELS]


def editor_forms() -> list[Path]:
    """The graphs of the repository in the editor's form."""
    return sorted(path for folder in FOLDERS for path in folder.glob("*.json") if "nodes" in _read(path))


def describe(graph: dict[str, Any]) -> None:
    """Write pack, version and models into the nodes of a graph in the editor's form, those of subgraphs included."""
    versions = _versions()
    for node in nodes_of(graph):
        pack = PACK if node["type"].startswith(OURS) else CORE
        models = [MODELS[value] for value in _values(node) if value in MODELS]
        properties = {"cnr_id": pack, "ver": versions[pack]} | ({"models": models} if models else {})
        others = {name: value for name, value in node["properties"].items() if name not in ("cnr_id", "ver", "models")}
        node["properties"] = others | properties


def nodes_of(graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The nodes that a server runs: neither those of the editor nor the frames of subgraphs."""
    subgraphs = graph.get("definitions", {}).get("subgraphs", [])
    frames = {subgraph["id"] for subgraph in subgraphs}
    for node in (node for part in (graph, *subgraphs) for node in part["nodes"]):
        if node["type"] not in EDITOR_NODES | frames:
            yield node


def write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_all() -> list[Path]:
    """Bring the fields of all bundled graphs up to date; the files that changed."""
    changed = []
    for path in editor_forms():
        graph = _read(path)
        describe(graph)
        if graph != _read(path):
            write(path, graph)
            changed.append(path)
    return changed


def _values(node: dict[str, Any]) -> list[str]:
    """The text values of a node's widgets."""
    values = node.get("widgets_values") or []
    return [value for value in (values.values() if isinstance(values, dict) else values) if isinstance(value, str)]


def _versions() -> dict[str, str]:
    """Of our nodes this version, of ComfyUI's own the oldest that the pack works with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = project["tool"]["comfy"]["requires-comfyui"].removeprefix(">=")
    return {PACK: project["project"]["version"], CORE: oldest}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
