"""The graphs of DreamVideo, which are assembled from parts, and their files."""

import ast
from pathlib import Path

import pytest
from devkit import dreamvideo, workflow

ROOT = Path(__file__).resolve().parents[3]
GRAPHS = {name: build() for name, build in dreamvideo.GRAPHS.items()}


def links(prompt: dict) -> list[tuple[str, str]]:
    """Pairs of a node and a node that it depends on."""
    values = [(number, value) for number, node in prompt.items() for value in node["inputs"].values()]
    return [(number, value[0]) for number, value in values if isinstance(value, list)]


@pytest.mark.parametrize("name", GRAPHS)
def test_every_node_is_used_and_takes_from_nodes_before_it(name):
    prompt = GRAPHS[name]
    taken = {source for _, source in links(prompt)}
    assert all(source in prompt and int(source) < int(number) for number, source in links(prompt))
    ends = [node["class_type"] for number, node in prompt.items() if number not in taken]
    assert ends == ["StillMotion_VideoContinuity" if name == "dreamvideo_stages" else "SaveVideo"]


@pytest.mark.parametrize("name", GRAPHS)
def test_motion_model_and_branch_are_of_one_file(name):
    named = [value for node in GRAPHS[name].values() for value in node["inputs"].values() if value == dreamvideo.FILE]
    assert len(named) == 2


def values(prompt: dict) -> dict[str, dict]:
    """The values that users set, by the titles of the nodes."""
    return {
        node["_meta"]["title"]: {name: v for name, v in node["inputs"].items() if not isinstance(v, list)}
        for node in prompt.values()
    }


def test_three_ways_to_use_one_file_differ_by_text_and_image_alone():
    """With an image alone, sampling starts with the image under the noise and has less image guidance; the number of
    frames is that of the bundled model's training."""
    both, image, text = (values(GRAPHS[f"dreamvideo_{way}_to_video"]) for way in ("text_image", "image", "text"))
    assert both.keys() - image.keys() == {"Empty Latent Image"}
    assert image.keys() - both.keys() == {"VAE Encode", "Every frame"}
    changed = {title for title in both.keys() & image.keys() if both[title] != image[title]}
    assert changed == {"Prompt", "Frames", "Double-Condition Guider", "Save Video"}
    assert both.keys() - text.keys() == {"Pocket Picture"}
    assert {title for title in text if both[title] != text[title]} == {"Save Video"}


def test_every_node_has_a_column():
    tree = ast.parse((ROOT / "scripts" / "make_workflows.py").read_text(encoding="utf-8"))
    (columns,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "COLUMNS"]
    known = {kind for kinds in ast.literal_eval(columns).values() for kind in kinds}
    used = {node["class_type"] for prompt in GRAPHS.values() for node in prompt.values()}
    assert used <= known


@pytest.mark.parametrize("name", GRAPHS)
def test_the_bundled_file_equals_the_assembled_graph(name):
    """A graph is bundled when its model file exists."""
    assert (name in workflow.names()) == dreamvideo.bundled()
    if dreamvideo.bundled():
        stored = {number: (node["class_type"], node["inputs"]) for number, node in workflow.load(name).items()}
        assert stored == {number: (node["class_type"], node["inputs"]) for number, node in GRAPHS[name].items()}
