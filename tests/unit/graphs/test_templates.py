"""The bundled workflows as a newcomer sees them: order, titles, one sentence each, thumbnails, short names."""

import json
import re
from pathlib import Path

import pytest
from devkit import files, workflow
from PIL import Image

TEMPLATES = list(workflow.templates().values())
NAMES = [template.name for template in TEMPLATES]


def test_the_folder_holds_three_files_of_every_template_and_no_others():
    """ComfyUI's template browser shows the files in workflows/, and its server takes those in workflows/api/."""
    expected = {workflow.FOLDER / "templates.toml"}
    for template in TEMPLATES:
        expected |= {template.editor_file, template.thumbnail, template.api_file}
    assert {path for path in workflow.FOLDER.rglob("*") if path.is_file()} == expected


def test_titles_are_numbered_in_order_and_are_file_names_on_every_system():
    assert [template.title[:3] for template in TEMPLATES] == [f"{i:02} " for i in range(1, len(TEMPLATES) + 1)]
    assert TEMPLATES[0].name == "text_to_video_pocket", "what needs no download comes first"
    for template in TEMPLATES:
        assert re.fullmatch(r"[\w .,()-]{5,60}", template.title, flags=re.ASCII), template.title
        assert ("(SD1.5" in template.title) == template.name.endswith("_sd15")


def test_every_template_has_one_sentence_which_its_graph_shows_first():
    for template in TEMPLATES:
        assert re.fullmatch(r"[A-Z][^.]{20,120}\.", template.about.replace("SD1.5", "SD15")), template.about
        nodes = json.loads(template.editor_file.read_text(encoding="utf-8"))["nodes"]
        (note,) = [node for node in nodes if node["type"] == "Note"]
        assert note["widgets_values"][0].startswith(template.about), template.name
        assert note["pos"] == [min(node["pos"][axis] for node in nodes) for axis in (0, 1)], "at the top left"


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
def test_a_thumbnail_is_small_and_moves_where_the_models_are_bundled(template: workflow.Template):
    assert template.thumbnail.stat().st_size < 200_000
    with Image.open(template.thumbnail) as image:
        assert image.size == (256, 256)
        assert image.format == ("JPEG" if template.name.endswith("_sd15") else "WEBP")
        assert (getattr(image, "n_frames", 1) > 1) != template.name.endswith("_sd15")


def test_a_graph_that_begins_with_an_image_loads_it_with_one_node():
    """Templates of photo models use Load Image; those of the pocket use a picture in its own style."""
    with_image = [name for name in NAMES if "image" in name or name in ("artv_story", "dreamvideo_stages")]
    assert with_image
    for name in with_image:
        kinds = [node["class_type"] for node in workflow.load(name).values()]
        assert kinds.count("LoadImage" if name.endswith("_sd15") else "StillMotion_PocketPicture") == 1, name
        assert not {"EmptyImage", "ImageCompositeMasked"} & set(kinds), name


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("text_to_video_pocket", "text_to_video_pocket"),
        ("01_text_to_video_pocket", "text_to_video_pocket"),
        ("01 Text to video (pocket)", "text_to_video_pocket"),
        ("Text to video (SD1.5, AnimateDiff)", "text_to_video_sd15"),
        ("some/folder/text_to_video_pocket.api.json", None),
        ("nothing", None),
    ],
)
def test_a_workflow_is_found_by_short_name_and_by_title(query: str, name: str | None):
    assert workflow.short_name(query) == name


def test_no_two_templates_answer_to_one_name():
    assert len({template.title for template in TEMPLATES} | set(NAMES)) == 2 * len(TEMPLATES)
    for template in TEMPLATES:
        assert workflow.short_name(template.name) == workflow.short_name(template.title) == template.name


def test_a_file_of_the_users_is_loaded_by_its_path(tmp_path: Path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"1": {"class_type": "KSampler", "inputs": {}}}))
    assert workflow.load(str(path))["1"]["class_type"] == "KSampler"
    with pytest.raises(files.Failed, match="no workflow"):
        workflow.load(str(tmp_path / "other.json"))
