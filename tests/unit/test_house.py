"""Rules for the repository: packaging, files that belong together, forbidden text."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TEXT = {".py", ".md", ".toml", ".txt", ".in", ".json", ".js", ".yaml", ".yml", ".cfg", ".sh", ""}


def shipped() -> list[Path]:
    """The files of the checkout: those in git if there is one, else all files that are not hidden."""
    git = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=False)
    if git.returncode == 0:
        return [path for name in git.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not path.relative_to(ROOT).parts[0].startswith(".")]


def python_files() -> list[Path]:
    return [path for path in shipped() if path.suffix == ".py"]


def test_every_package_is_in_the_wheel():
    packages = {"stillmotion"}
    for init in ROOT.rglob("__init__.py"):
        folder = init.parent.relative_to(ROOT)
        if folder.parts and folder.parts[0] not in {"tests", "scripts", "build"} and folder.parts[0][0] != ".":
            packages.add(".".join(("stillmotion", *folder.parts)))
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(packages)


def test_comfyui_installs_what_the_wheel_needs():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert sorted(required) == sorted(PROJECT["project"]["dependencies"])


def test_the_package_never_asks_for_torch():
    """A pack that depends on torch could replace the user's build."""
    names = {re.split(r"[^\w-]", requirement)[0].lower() for requirement in PROJECT["project"]["dependencies"]}
    assert not names & {"torch", "torchvision", "torchaudio", "comfyui", "xformers"}


def test_the_licence_is_the_one_that_is_named():
    assert PROJECT["project"]["license"] == "GPL-3.0-or-later"
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "GNU GENERAL PUBLIC LICENSE" in licence
    assert "Version 3, 29 June 2007" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_the_newest_version_is_in_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", changelog, flags=re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert PROJECT["project"]["version"] in changelog


def test_only_commands_print():
    for path in python_files():
        if path.relative_to(ROOT).parts[0] in {"scripts", "benchmarks", "tests"}:
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        names = [node.func.id for node in calls if isinstance(node.func, ast.Name)]
        assert "print" not in names, path.relative_to(ROOT)


def test_no_file_is_longer_than_a_person_reads():
    """Files have less than 400 lines, tests less than 600."""
    long = {}
    for path in python_files():
        name, length = path.relative_to(ROOT).as_posix(), len(path.read_text(encoding="utf-8").splitlines())
        if length >= (600 if name.startswith("tests/") else 400):
            long[name] = length
    assert long == {}


# The strings are assembled here, so that this file does not contain what it forbids.
FORBIDDEN = {
    "a path of some machine": re.compile("|".join(["/home" + r"/\w", "/Users" + r"/\w", "/root" + "/", "/work" + "/"])),
    "a path of some machine, too": re.compile("/tmp" + r"/\w|[A-Z]:" + r"\\Users"),
    "a parent of the checkout": re.compile(r"\.\./" + "shared"),
    "a package index": re.compile(
        r"(?:--(?:extra-)?index-url|--find-links)[ =]+https?://(?!pypi\.org|download\.pytorch\.org)"
    ),
}


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_nothing_in_the_repository_knows_the_machine_it_was_made_on(kind):
    hits = []
    for path in shipped():
        if path.suffix in TEXT and path.stat().st_size < 2_000_000:
            text = path.read_text(encoding="utf-8", errors="replace")
            hits += [f"{path.relative_to(ROOT)}: {match.group()}" for match in FORBIDDEN[kind].finditer(text)]
    assert hits == []


def test_every_link_and_picture_of_a_page_leads_somewhere():
    """Links within the repository, in Markdown at its root and in docs/ and pocket/."""
    broken, checked = [], 0
    for path in (path for path in shipped() if path.suffix == ".md" and "web" not in path.parts):
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if not re.match(r"https?:|#", link):
                checked += 1
                broken += (
                    [] if (path.parent / link.partition("#")[0]).exists() else [f"{path.relative_to(ROOT)}: {link}"]
                )
    assert checked > 10
    assert broken == []


def test_the_first_page_begins_with_a_moving_picture():
    """An animated WebP of at most 3 MB, drawn by the command that the page names."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"!\[[^]]+\]\((\S+)\)", text)
    assert first
    assert "\n## " not in text[: first.start()]
    assert "python3 scripts/dev.py bench sheet" in text
    path = ROOT / first[1]
    with Image.open(path) as picture:
        assert (picture.format, getattr(picture, "n_frames", 1) >= 16) == ("WEBP", True)
    assert path.stat().st_size <= 3_000_000


def test_weights_in_the_repository_are_safetensors_and_small():
    """At most 25 MB for the pocket Stable Diffusion, 10 MB for motion models, 7 MB for a ControlNet, 60 MB in all; no
    pickles."""
    for path in shipped():
        assert path.suffix not in {".ckpt", ".pt", ".pth", ".bin", ".pkl"}, path.relative_to(ROOT)
        limits = {
            "pocket.safetensors": 25e6,
            "motion.safetensors": 10e6,
            "harivo.safetensors": 10e6,
            "vidrd.safetensors": 10e6,
            "artv.safetensors": 5e6,
            "dreamvideo.safetensors": 11e6,
            "control_edges.safetensors": 7e6,
        }
        limit = limits.get(path.name, 3e6)
        assert path.stat().st_size <= limit, path.relative_to(ROOT)
    assert sum(path.stat().st_size for path in shipped() if ROOT / "pocket" in path.parents) < 60e6
