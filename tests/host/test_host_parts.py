"""Parts of ComfyUI that it does not promise to keep: present, listed in the docs, and named once they are gone."""

import logging

import pytest


@pytest.fixture
def host(comfy):
    from stillmotion.model_patches.comfy_host.base import host

    return host


def test_this_comfyui_has_all_of_them(host):
    assert host.missing() == []


def test_each_is_in_the_architecture(host, root):
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    for (module, name), (attributes, _) in host.PARTS.items():
        assert f"`{module}.{name}`" in text
        line = next(line for line in text.splitlines() if f"`{module}.{name}`" in line)
        assert [a for a in attributes if f"`{a}`" not in line] == [], name


def test_each_is_named_where_it_has_gone(host, monkeypatch):
    for (module, name), (attributes, user) in list(host.PARTS.items()):
        for attribute in attributes:
            with monkeypatch.context() as context:
                renamed = tuple(f"{a}_gone" if a == attribute else a for a in attributes)
                context.setitem(host.PARTS, (module, name), (renamed, user))
                assert host.missing() == [f"{module}.{name}.{attribute}_gone ({user})"]


def test_a_module_or_a_class_that_has_gone_is_named(host, monkeypatch):
    monkeypatch.setattr(host, "PARTS", {("comfy.gone", "A"): (("b",), "x"), ("comfy.samplers", "Gone"): (("b",), "y")})
    assert host.missing() == ["comfy.gone.A (x)", "comfy.samplers.Gone (y)"]


def test_the_log_names_what_has_gone_when_the_pack_is_loaded(host, monkeypatch, caplog):
    from stillmotion.nodes import check_host

    with caplog.at_level(logging.ERROR):
        check_host()
    assert caplog.text == ""
    monkeypatch.setattr(host, "PARTS", {("comfy.samplers", "CFGGuider"): (("original_gone",), "long videos")})
    with caplog.at_level(logging.ERROR):
        check_host()
    assert "does not have comfy.samplers.CFGGuider.original_gone (long videos)" in caplog.text
    assert "update StillMotion" in caplog.text
