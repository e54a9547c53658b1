"""Who may import whom (docs/architecture.md), read from the source, imports inside functions included."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAPERS = {"harivo", "vidrd", "artv", "dreamvideo"}
PURE = {"torch"}
# folder -> (foreign packages, own folders). A folder may always import itself; the longest matching folder rules.
RULES: dict[str, tuple[set[str], set[str]]] = {
    "": ({"comfyui_version"}, {"nodes"}),
    "model_patches": (
        {"torch", "safetensors"},
        {"model_patches", "model_patches/core", *(f"model_patches/{paper}" for paper in PAPERS)},
    ),
    "model_patches/core": (PURE, set()),
    **{f"model_patches/{paper}": (PURE, {"model_patches/core"}) for paper in PAPERS},
    "model_patches/comfy_host": (
        {"torch", "comfy", "comfyui_version"},
        {"model_patches", "model_patches/core", *(f"model_patches/{paper}" for paper in PAPERS)},
    ),
    "model_patches/diffusers_host": (
        {"torch", "diffusers", "transformers"},
        {"model_patches", "model_patches/core", *(f"model_patches/{paper}" for paper in PAPERS)},
    ),
    "rendering": ({"torch", "numpy", "av", "PIL", "safetensors"}, {"model_patches", "evaluation"}),
    "evaluation": ({"torch", "numpy", "safetensors", "PIL", "transformers"}, {"model_patches/core"}),
    "nodes": (
        {"comfy", "comfy_api", "folder_paths", "server"},
        {"model_patches", "model_patches/comfy_host", "rendering", "evaluation"},
    ),
    "training": (
        {
            "torch",
            "numpy",
            "safetensors",
            "diffusers",
            "transformers",
            "accelerate",
            "peft",
            "kornia",
            "PIL",
            "av",
            "cv2",
        },
        {"model_patches", "model_patches/core", "model_patches/diffusers_host", "evaluation"}
        | {f"model_patches/{paper}" for paper in PAPERS},
    ),
}
OWN_NAMES = {"stillmotion", "nodes", "model_patches", "training", "evaluation", "rendering", "benchmarks"}


def sources() -> list[Path]:
    folders = ("model_patches", "nodes", "rendering", "evaluation", "training", "benchmarks")
    return [ROOT / "__init__.py", *(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))]


def own_folder(module: str) -> str:
    """The folder that holds a module named from the root: "training.data.sprites" -> "training/data"."""
    parts = module.split(".") if module else []
    if (ROOT.joinpath(*parts)).is_dir():
        return "/".join(parts)
    return "/".join(parts[:-1])


def imports(path: Path) -> list[tuple[bool, str]]:
    """(is it relative, the module's full name from the root or the foreign name) of every import statement."""
    package = list(path.relative_to(ROOT).parent.parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(False, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append((False, node.module or ""))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                named = ".".join([*base, alias.name])
                is_module = (ROOT / Path(*base) / alias.name).is_dir() or (
                    ROOT / Path(*base) / f"{alias.name}.py"
                ).is_file()
                found.append((True, named if is_module else ".".join(base)))
    return found


def rule_of(folder: str) -> str | None:
    """The longest folder of RULES that `folder` is in; None for benchmarks, which may import everything."""
    if folder.split("/")[0] == "benchmarks":
        return None
    return max((rule for rule in RULES if rule == "" or folder == rule or folder.startswith(f"{rule}/")), key=len)


def violations(path: Path) -> list[str]:
    folder = path.relative_to(ROOT).parent.as_posix().removeprefix(".")
    rule = rule_of(folder)
    wrong = []
    for relative, module in imports(path):
        top = module.split(".")[0]
        if not relative:
            if top in OWN_NAMES:
                wrong.append(f"imports {module} by an absolute name; ComfyUI loads the pack under another name")
            elif rule is not None and top not in sys.stdlib_module_names and top not in RULES[rule][0]:
                wrong.append(f"imports {module}")
        elif rule is not None:
            target = rule_of(own_folder(module))
            if target is None or (target != rule and target not in RULES[rule][1]):
                wrong.append(f"imports our {module}")
    return wrong


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_stays_inside_its_walls(path):
    assert not violations(path)


BREACHES = {
    "model_patches/core": "import numpy; import comfy.sd; from ..harivo import mitigating; import stillmotion",
    "model_patches/vidrd": "from ..harivo.mitigating import mitigate; from .. import checkpoint; import safetensors",
    "model_patches/comfy_host": "from ..diffusers_host import motion; import diffusers; from ...nodes import motion",
    "model_patches/diffusers_host": "from ..comfy_host import motion; import comfy",
    "rendering": "import comfy.utils; from ..model_patches.comfy_host import motion; from ..nodes import motion",
    "nodes": "import torch; from ..model_patches.core import levels; from ..training import engine",
    "training": "from ..nodes import motion; import comfy.sd; from ..model_patches.comfy_host import motion",
    "evaluation": "from ..benchmarks import report; import nodes; from ..model_patches.comfy_host import motion",
}


def test_the_walls_notice_what_they_are_for(tmp_path, monkeypatch):
    """Each line is one breach; a wall that lets it through is no wall."""
    for folder in RULES:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "model_patches/harivo/mitigating.py").touch()
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for folder, statements in BREACHES.items():
        for statement in statements.split("; "):
            breach = tmp_path / folder / "a.py"
            breach.write_text(f"def late():\n    {statement}\n", encoding="utf-8")
            assert violations(breach), f"{folder}: {statement}"
    (tmp_path / "model_patches/vidrd/a.py").write_text("import torch\nfrom ..core import levels\n", encoding="utf-8")
    assert not violations(tmp_path / "model_patches/vidrd/a.py")


def test_the_root_imports_nothing_until_comfyui_asks_for_the_nodes():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert ast.literal_eval(assigned.pop("WEB_DIRECTORY")) == "./web"
    assert assigned.keys() == {"PYTHON", "COMFYUI"}
    assert all(isinstance(ast.literal_eval(value), tuple) for value in assigned.values())


def test_the_entry_script_needs_nothing_but_python():
    """dev.py runs where nothing is installed yet; what it starts later may use what is installed by then."""
    allowed = {*sys.stdlib_module_names, "devkit"}
    late = {"scripts/devkit/editor.py": {"playwright"}, "scripts/make_workflows.py": {"PIL", "av"}}
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        foreign = {module.split(".")[0] for relative, module in imports(path) if not relative} - allowed
        assert foreign <= late.get(name, set()), name
