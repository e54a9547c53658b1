"""The data for the ComfyUI registry: the fields of pyproject.toml, and the archive without .comfyignore's files."""

import ast
import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMFY = PROJECT["tool"]["comfy"]
SHOWN_BY_COMFYUI = {"web", "workflows", "subgraphs", "locales", "pocket"}
RUN_BY_COMFYUI = {"nodes", "model_patches", "rendering", "evaluation"}
FILES = {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "CHANGELOG.md", "LICENSE"}


def listed(*options: str) -> set[str]:
    git = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", *options], capture_output=True, text=True, check=False)
    if git.returncode:
        pytest.skip("the archive is made of the files that git knows, and this is no checkout of git")
    return {name for name in git.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def archive() -> set[str]:
    """The files of `comfy node pack`: those in git that .comfyignore, read like a .gitignore, does not exclude."""
    return listed() - listed("--cached", "--ignored", "--exclude-from=.comfyignore")


def imported(path: Path) -> set[Path]:
    """The files of this package that a file imports, at any place."""
    files = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for target in (base, *(base / alias.name for alias in node.names)):
                files |= {file for file in (target.with_suffix(".py"), target / "__init__.py") if file.is_file()}
    return files


def runtime_files() -> set[str]:
    """All Python files that ComfyUI reads when it loads the pack and runs its nodes."""
    waiting, visited = {ROOT / "__init__.py"}, set()
    while waiting:
        path = waiting.pop()
        visited.add(path)
        packages = {parent / "__init__.py" for parent in path.parents if ROOT in parent.parents}
        waiting |= (imported(path) | {init for init in packages if init.is_file()}) - visited
    return {path.relative_to(ROOT).as_posix() for path in visited}


def test_the_archive_has_every_file_that_the_nodes_import(archive: set[str]):
    assert len(runtime_files()) > 50
    assert runtime_files() - archive == set()


def test_the_archive_has_every_file_that_comfyui_shows(archive: set[str]):
    judges = {"pocket/judge.safetensors", "pocket/video_judge.safetensors"}  # they compute scores and draw nothing
    editor_files = {name for name in listed() if name.partition("/")[0] in SHOWN_BY_COMFYUI}
    assert editor_files - archive == judges


def test_the_archive_has_nothing_else(archive: set[str]):
    others = {name for name in archive if name.partition("/")[0] not in SHOWN_BY_COMFYUI | RUN_BY_COMFYUI}
    assert others <= FILES
    assert {"__init__.py", "pyproject.toml", "LICENSE", "README.md"} <= others


def test_every_link_and_picture_of_the_registry_is_of_the_publishers_repository():
    repository = f"github.com/{COMFY['PublisherId']}/{PROJECT['project']['name']}"
    urls = PROJECT["project"]["urls"]
    assert {"Homepage", "Repository", "Documentation", "Issues"} <= urls.keys()
    assert all(url.startswith(f"https://{repository}") for url in urls.values())
    raw = f"https://{repository.replace('github.com', 'raw.githubusercontent.com')}/main/"
    for field, (widest, highest) in {"Icon": (400, 400), "Banner": (2100, 900)}.items():
        name = COMFY[field].removeprefix(raw)
        assert name in listed(), field
        with Image.open(ROOT / name) as picture:
            assert picture.width / picture.height == pytest.approx(widest / highest, rel=0.01), field
            assert picture.width <= widest, field
        assert (ROOT / name).stat().st_size < 300_000, field


def test_the_registry_reads_the_fields_that_it_looks_for():
    project = PROJECT["project"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", project["name"])
    assert "Operating System :: OS Independent" in project["classifiers"]
    assert not [name for name in project["classifiers"] if name.startswith("License ::")]  # a licence is named already
    assert len(project["description"]) < 200


@pytest.fixture(scope="module")
def comfy_cli(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """comfy-cli in a folder, with its own home folder."""
    program = os.environ.get("STILLMOTION_COMFY_CLI")
    if not program:
        pytest.skip("STILLMOTION_COMFY_CLI is not set; `python3 scripts/dev.py test` installs comfy-cli and sets it")
    home = str(tmp_path_factory.mktemp("home"))
    environment = {**os.environ, "HOME": home, "USERPROFILE": home, "DO_NOT_TRACK": "1"}

    def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [program, "--skip-prompt", "--no-json", *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the current checkout with its own git, because comfy-cli leaves files in its working folder."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in listed():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for arguments in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_comfy_node_validate_has_nothing_to_say(comfy_cli, checkout: Path):
    ended = comfy_cli(checkout, "node", "validate")
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    assert "All validation checks passed" in output
    assert "arning" not in output


@pytest.mark.slow
def test_comfy_node_pack_makes_the_archive_that_these_tests_describe(comfy_cli, checkout: Path, archive: set[str]):
    ended = comfy_cli(checkout, "node", "pack")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with zipfile.ZipFile(checkout / "node.zip") as packed:
        assert set(packed.namelist()) == archive
        weights = sum(entry.compress_size for entry in packed.infolist() if entry.filename.startswith("pocket/"))
    assert (checkout / "node.zip").stat().st_size - weights < 2_000_000
