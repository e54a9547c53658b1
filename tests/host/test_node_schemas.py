"""Requirements that the schema of every node must meet."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_ids_are_ours_and_no_two_are_the_same(schemas):
    ids = [schema.node_id for schema in schemas]
    assert len(ids) == len(set(ids)) >= 5
    assert all(re.fullmatch(r"StillMotion_[A-Z]\w+", name) for name in ids)


def test_every_node_has_a_description_and_is_in_our_menu(schemas):
    for schema in schemas:
        assert schema.display_name
        assert schema.description, schema.node_id
        assert re.match(r"StillMotion(/|$)", schema.category), schema.node_id


def test_every_input_has_a_tooltip(schemas):
    for schema in schemas:
        for socket in schema.inputs:
            assert len(socket.tooltip or "") > 10, f"{schema.node_id}.{socket.id}"


def test_every_output_has_a_tooltip(schemas):
    missing = [
        f"{schema.node_id}.{number}"
        for schema in schemas
        for number, socket in enumerate(schema.outputs)
        if len(socket.tooltip or "") <= 10
    ]
    assert missing == []


def test_every_node_is_found_under_other_names(schemas):
    """Users search for the name of the paper, or for the name in another pack."""
    assert [schema.node_id for schema in schemas if len(schema.search_aliases or []) < 2] == []


def test_no_node_has_more_than_eight_widgets_as_it_is_placed(schemas):
    """The classic renderer shows advanced inputs, too, and a widget for what happens to a seed after a run."""
    from comfy_api.v0_0_2 import io

    for schema in schemas:
        widgets = [socket for socket in schema.inputs if isinstance(socket, io.WidgetInput) and not socket.force_input]
        rows = len(widgets) + sum(bool(getattr(w, "control_after_generate", None)) for w in widgets)
        assert rows <= 8, f"{schema.node_id}: {[widget.id for widget in widgets]}"


def test_every_node_has_a_help_page_that_names_all_its_widgets(schemas):
    """ComfyUI shows web/docs/<node id>.md in its help panel."""
    from comfy_api.v0_0_2 import io

    for schema in schemas:
        page = ROOT / "web" / "docs" / f"{schema.node_id}.md"
        assert page.is_file(), schema.node_id
        text = page.read_text(encoding="utf-8")
        widgets = [socket.id for socket in schema.inputs if isinstance(socket, io.WidgetInput)]
        missing = [name for name in widgets if f"`{name}`" not in text]
        assert not missing, f"{page.name} does not tell of {missing}"


def test_no_help_page_is_left_of_a_node_that_is_gone(schemas):
    pages = {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}
    assert pages == {schema.node_id for schema in schemas}


def test_seeds_stay_as_they_are_until_the_user_changes_them(schemas):
    """A seed that changes by itself would start a new job, so that queueing again could not resume the old one."""
    from comfy_api.v0_0_2 import io

    seeds = [socket for schema in schemas for socket in schema.inputs if socket.id in ("seed", "noise_seed")]
    assert len(seeds) >= 3
    assert all(seed.control_after_generate is io.ControlAfterGenerate.fixed for seed in seeds)
