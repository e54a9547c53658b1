"""The allowed imports (docs/architecture.md), checked in the source, including imports inside functions."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAPERS = {f"model_patches/{paper}" for paper in ("harivo", "vidrd", "artv", "dreamvideo", "sparsectrl")}
PURE = {"torch"}
MATHS = {"model_patches/core", *PAPERS}
FILES = {"model_patches", *MATHS}
TRAINING_PACKAGES = {
    *("torch", "numpy", "safetensors", "diffusers", "transformers", "accelerate", "peft", "kornia", "PIL", "av", "cv2"),
}
# folder -> (foreign packages, own folders). A folder may always import itself; the longest matching folder rules.
# docs/architecture.md has the same table: `test_the_page_draws_these_walls`.
RULES: dict[str, tuple[set[str], set[str]]] = {
    "": ({"comfyui_version"}, {"nodes"}),
    "model_patches/core": (PURE, set()),
    **{paper: (PURE, {"model_patches/core"}) for paper in sorted(PAPERS)},
    "model_patches": ({"torch", "safetensors"}, MATHS),
    "model_patches/comfy_host": ({"torch", "comfy", "comfyui_version"}, FILES),
    "model_patches/diffusers_host": ({"torch", "diffusers", "transformers"}, FILES),
    "rendering": ({"torch", "numpy", "av", "PIL", "safetensors"}, {"model_patches"}),
    "evaluation": ({"torch", "numpy", "safetensors", "PIL", "transformers"}, {"model_patches/core"}),
    "nodes": (
        {"comfy", "comfy_api", "folder_paths", "server"},  # server: previews while a node renders
        {*FILES, "model_patches/comfy_host", "rendering", "evaluation"},
    ),
    "training/plans": (PURE, MATHS),
    "training/engine": (TRAINING_PACKAGES, {"model_patches", "training/plans"}),
    "training/data": (TRAINING_PACKAGES, {*FILES, "evaluation", "training/plans"}),
    "training/sampling": (TRAINING_PACKAGES, {*FILES, "training/plans", "training/engine"}),
    "training/systems": (
        TRAINING_PACKAGES,
        {
            *(*FILES, "model_patches/diffusers_host", "evaluation"),
            *(f"training/{room}" for room in ("plans", "engine", "data", "sampling")),
        },
    ),
    "training/pocket": (
        TRAINING_PACKAGES,
        {
            *(*FILES, "model_patches/diffusers_host", "evaluation"),
            *(f"training/{room}" for room in ("plans", "engine", "data", "systems")),
        },
    ),
    "training/metrics": (TRAINING_PACKAGES, {*FILES, "evaluation", "training/plans", "training/data"}),
    "training/tools": (
        TRAINING_PACKAGES,
        {
            *(*FILES, "model_patches/diffusers_host", "evaluation"),
            *(f"training/{room}" for room in ("plans", "engine", "data", "systems", "pocket")),
        },
    ),
    "training/ablations": (
        TRAINING_PACKAGES,
        {
            *(*FILES, "model_patches/diffusers_host", "evaluation"),
            *(f"training/{room}" for room in ("plans", "engine", "data", "sampling", "systems", "metrics", "tools")),
        },
    ),
    "training": (
        TRAINING_PACKAGES,
        {
            f"training/{room}"
            for room in ("plans", "engine", "data", "systems", "pocket", "metrics", "tools", "ablations")
        },
    ),
}
ONLY = {room: {"model_patches": {"model_patches.files"}} for room in ("rendering", "training/engine")}
"""folder -> own folder -> the only modules that it may import from there."""
SYSTEMS = {"harivo", "vidrd", "vidrd_decoder", "artv", "dreamvideo"}
INDEPENDENT = {
    "training/systems": SYSTEMS,
    "training/plans": SYSTEMS,
    "training/ablations": {*SYSTEMS, "pseudo"},
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
    statements = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            statements += [(False, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            statements.append((False, node.module or ""))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                named = ".".join([*base, alias.name])
                is_module = (ROOT / Path(*base) / alias.name).is_dir() or (
                    ROOT / Path(*base) / f"{alias.name}.py"
                ).is_file()
                statements.append((True, named if is_module else ".".join(base)))
    return statements


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
            modules = ONLY.get(rule, {}).get(target or "", {module})
            if target is None or (target != rule and target not in RULES[rule][1]) or module not in modules:
                wrong.append(f"imports our {module}")
            elif neighbours(path, module):
                wrong.append(f"imports {module}, a system or an ablation beside it")
    return wrong


def neighbours(path: Path, module: str) -> bool:
    """Whether one system imports another, or one ablation another."""
    room = path.relative_to(ROOT).parent.as_posix()
    if room not in INDEPENDENT or own_folder(module) != room:
        return False
    importing, imported = (INDEPENDENT[room] & owners(name) for name in (path.stem, module.rpartition(".")[2]))
    return bool(importing and imported and importing != imported)


def owners(name: str) -> set[str]:
    """The system that a module belongs to: dreamvideo_start belongs to dreamvideo, vidrd_decoder is its own."""
    return {name} if name in SYSTEMS else {name.partition("_")[0]}


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_stays_inside_its_walls(path):
    assert not violations(path)


BREACHES = {
    "model_patches/core": "import numpy; import comfy.sd; from ..harivo import mitigating; import stillmotion",
    "model_patches/vidrd": "from ..harivo.mitigating import mitigate; from .. import checkpoint; import safetensors",
    "model_patches/comfy_host": "from ..diffusers_host import motion; import diffusers; from ...nodes import motion",
    "model_patches/diffusers_host": "from ..comfy_host import motion; import comfy",
    "rendering": "import comfy.utils; from ..model_patches.comfy_host import motion; from ..nodes import motion; "
    "from ..model_patches import checkpoint; from ..evaluation import clips",
    "nodes": "import torch; from ..model_patches.diffusers_host import motion; from ..training import engine",
    "training": "from ..nodes import motion; import comfy.sd; from ..model_patches.comfy_host import motion",
    "training/systems": "from . import vidrd_decoder; from .harivo import HarivoTask; from .. import registry; "
    "from ..ablations import common",
    "training/ablations": "from . import pseudo; from .. import registry",
    "training/plans": "from . import harivo; from ..engine import loop; import diffusers",
    "training/engine": "from ..systems import harivo; from ..data import latents",
    "evaluation": "from ..benchmarks import report; import nodes; from ..model_patches.comfy_host import motion",
}


def test_the_walls_notice_every_kind_of_breach(tmp_path, monkeypatch):
    """Each line breaks one rule, which the check must report."""
    for folder in RULES:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for module in ("model_patches/harivo/mitigating", "model_patches/checkpoint", "training/registry"):
        (tmp_path / f"{module}.py").touch()
    for system in ("harivo", "vidrd_decoder", "pseudo"):
        for room in INDEPENDENT:
            (tmp_path / room / f"{system}.py").touch()
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for folder, statements in BREACHES.items():
        for statement in statements.split("; "):
            breach = tmp_path / folder / ("artv.py" if folder in INDEPENDENT else "a.py")
            breach.write_text(f"def late():\n    {statement}\n", encoding="utf-8")
            assert violations(breach), f"{folder}: {statement}"
    (tmp_path / "model_patches/vidrd/a.py").write_text("import torch\nfrom ..core import levels\n", encoding="utf-8")
    assert not violations(tmp_path / "model_patches/vidrd/a.py")


def arrows(between: Callable[[str], str]) -> dict[str, set[str]]:
    """The imports between modules, or between their folders by `between`."""
    out: dict[str, set[str]] = {}
    for path in sources():
        start = between(path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__"))
        out.setdefault(start, set())
        for relative, module in imports(path):
            end = between(module.replace(".", "/"))
            if relative and end != start:
                out[start].add(end)
    return out


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Names in import circles: those that remain when all names without imports are removed repeatedly."""
    rest = {start: set(ends) for start, ends in arrows.items()}
    while removable := [start for start, ends in rest.items() if not ends & rest.keys()]:
        for start in removable:
            del rest[start]
    return sorted(rest)


@pytest.mark.slow
def test_no_module_and_no_folder_imports_in_a_circle():
    assert circles(arrows(lambda module: module)) == []
    folders = arrows(lambda module: module if (ROOT / module).is_dir() else module.rpartition("/")[0])
    assert circles(folders) == []
    assert circles({"a": {"b"}, "b": {"a", "c"}, "c": set()}) == ["a", "b"]


def test_no_folder_of_code_has_more_than_fourteen_files():
    """Folders with more files are hard to survey."""
    folders = Counter(
        path.parent.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if "runs" not in path.parts
    )
    assert {name: count for name, count in folders.items() if count > 14} == {}


def test_the_page_draws_these_walls():
    """docs/architecture.md has a row for each folder with what it may import."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder, (_, allowed) in RULES.items():
        if folder and folder not in PAPERS:
            row = next((line for line in page.splitlines() if line.startswith(f"| `{folder}` |")), "")
            assert row, f"no row for {folder}"
            listed = set(re.findall(r"`([\w/]+)`", row.split("|")[2]))
            if "the papers" in row.split("|")[2]:
                listed |= PAPERS
            assert listed == allowed, folder


def test_the_root_imports_nothing_until_comfyui_asks_for_the_nodes():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert ast.literal_eval(assigned.pop("WEB_DIRECTORY")) == "./web"
    assert assigned.keys() == {"PYTHON", "COMFYUI"}
    assert all(isinstance(ast.literal_eval(value), tuple) for value in assigned.values())


def test_the_entry_script_needs_nothing_but_python():
    """dev.py runs before anything is installed; the modules that it starts later may use installed packages."""
    allowed = {*sys.stdlib_module_names, "devkit", "bundle"}
    late = {"scripts/devkit/editor.py": {"playwright"}, "scripts/bundle/thumbnails.py": {"PIL", "av"}}
    late |= {"scripts/mutations.py": {"cosmic_ray"}}  # in an environment of its own
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        foreign = {module.split(".")[0] for relative, module in imports(path) if not relative} - allowed
        assert foreign <= late.get(name, set()), name
