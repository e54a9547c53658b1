"""Each bundled workflow, dropped on the canvas of a real editor and run, like by a user."""

from pathlib import Path

import pytest
from devkit import metadata, workflow
from devkit.editor import Editor

pytestmark = pytest.mark.browser

NAMES = workflow.names()
POCKET = [name for name in NAMES if not name.endswith("_sd15")]


def typed(values: list) -> list:
    """Widget values in a form that can be compared: 1 equals 1.0 but not True, so that a shifted value is noticed."""
    return [(isinstance(value, bool), value) for value in values]


@pytest.fixture(scope="module", params=NAMES)
def dropped(request: pytest.FixtureRequest, editor: Editor) -> str:
    """Drop a workflow on the canvas once, and return its name in the editor."""
    editor.drop(workflow.templates()[request.param].editor_file)
    return request.param


def test_a_dropped_file_comes_up_whole(editor: Editor, dropped: str, editor_file, shots: Path):
    editor.show_all()
    editor.shot(shots / f"{dropped}.png")
    assert editor.missing_nodes() == []
    # the test server has none of the files of the SD1.5 graphs
    files = len(metadata.files_of(workflow.load(dropped)))
    expected = [f"{files} errors found"] if files else []
    assert [text[:14] for text in editor.messages(at_least=len(expected))] == expected
    before = {node["id"]: typed(node.get("widgets_values", [])) for node in editor_file(dropped)["nodes"]}
    after = {node["id"]: typed(node.get("widgets_values", [])) for node in editor.serialized()["nodes"]}
    assert after == before
    assert editor.problems == []


def test_editor_form_and_api_form_are_the_same_graph(editor: Editor, dropped: str):
    api_form = {number: (node["class_type"], node["inputs"]) for number, node in editor.prompt().items()}
    stored = {number: (node["class_type"], node["inputs"]) for number, node in workflow.load(dropped).items()}
    assert api_form == stored


def test_run_ends_with_success_or_names_the_missing_files(editor: Editor, dropped: str, shots: Path):
    """One graph as it is, the others with fewer steps and clips: what they make is not looked at here."""
    if dropped != "text_to_video_pocket":
        editor.limit("steps", 3)
        editor.limit("clips", 3)
    ended = editor.run()
    editor.show_all()
    editor.shot(shots / f"{dropped}.run.png")
    if dropped in POCKET:
        assert ended["kind"] == "execution_success", ended["detail"]
        assert editor.messages() == []
        assert editor.problems == []
    else:
        assert ended["kind"] == "refused"
        assert "v1-5-pruned-emaonly-fp16" in str(ended["detail"])


@pytest.mark.parametrize("name", NAMES)
def test_no_nodes_lie_over_each_other(editor_file, name: str):
    boxes = [(*node["pos"], *node["size"]) for node in editor_file(name)["nodes"]]
    title = 30  # a node's title bar is above its position
    for i, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[:i]:
            apart = x >= other_x + other_width or other_x >= x + width
            assert apart or y - title >= other_y + other_height or other_y - title >= y + height


# the widget that controls changes of the seed
CONTROL = dict.fromkeys(("KSampler", "RandomNoise", "StillMotion_LongVideo", "StillMotion_StagedVideo"), 1)
CONTROL |= {"StillMotion_AutoregressiveVideo": 1}


def test_no_seed_changes_by_itself(editor_file):
    for name in NAMES:
        seeded = [node for node in editor_file(name)["nodes"] if node["type"] in CONTROL]
        assert seeded
        assert all(node["widgets_values"][CONTROL[node["type"]]] == "fixed" for node in seeded), name
