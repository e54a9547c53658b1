"""Prompts with numbers: our syntax, and that of other packs' prompt travel."""

import pytest

from stillmotion.model_patches.artv.story import parse_story
from stillmotion.model_patches.core.prompt_lines import keyframes, numbered
from stillmotion.model_patches.dreamvideo.stages import parse_stages

TRAVEL = ((0, "a summer garden"), (16, "a winter garden"))


@pytest.mark.parametrize(
    "text",
    [
        '"0": "a summer garden",\n"16": "a winter garden"',
        '"0" : "a summer garden",\n"16" :"a winter garden",\n',
        '{\n  "0": "a summer garden",\n  "16": "a winter garden"\n}',
        '{"0": "a summer garden", "16": "a winter garden"}',
        "'0': 'a summer garden',\n'16': 'a winter garden'",
        '0: "a summer garden",\n16: "a winter garden"',
        '0: "a summer garden"\n16: "a winter garden"',
        "0: a summer garden\n16: a winter garden",
        "0:a summer garden,\n16:a winter garden",
        '"0": "a summer garden", "16": "a winter garden"',
    ],
)
def test_prompt_travel_is_understood(text):
    assert keyframes(text) == TRAVEL
    assert parse_story(text).prompts == ((16, "a summer garden"), (16, "a winter garden"))
    with pytest.raises(ValueError, match=r"(?s)a stage has none.*:\na summer garden\na winter garden"):
        parse_stages(text)


def test_texts_of_prompt_travel_may_have_colons_commas_and_quotes():
    text = '"0": "a (star:1.2), 16:9, \\"big\\"",\n"8": "it\'s night"'
    assert keyframes(text) == ((0, 'a (star:1.2), 16:9, "big"'), (8, "it's night"))


@pytest.mark.parametrize(
    "text",
    [
        "a cat\n5: a bird",
        "1: a cat\n5: a bird",
        '1: "Hello" says a cat\n2: a dog',
        'a sign "0": nothing',
        "16:9 picture of a cat",
        "24: a red ball rolls",
        "",
    ],
)
def test_other_text_is_no_prompt_travel(text):
    assert keyframes(text) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("3: a dog", ("3", "a dog")),
        ("3:a dog", ("3", "a dog")),
        ("3 : a dog", ("3", "a dog")),
        ("3:", ("3", "")),
        ("16:9 picture", ("", "16:9 picture")),
        ("at 10:30 in the morning", ("", "at 10:30 in the morning")),
        ("a dog", ("", "a dog")),
    ],
)
def test_a_number_needs_no_space_after_its_colon(line, expected):
    assert numbered(line) == expected


def test_the_frames_of_a_story_must_begin_at_0_and_rise():
    for text in ('"4": "a", \n"8": "b"', '"0": "a",\n"8": "b",\n"8": "c"'):
        with pytest.raises(ValueError, match=r'must begin at 0 and rise; or write .* "24: a red ball rolls"'):
            parse_story(text)
    assert parse_story('"0": "a",\n"8": "b",\n"30": "c"').prompts == ((8, "a"), (22, "b"), (16, "c"))


def test_stages_have_no_numbers_but_one_may_begin_with_one():
    with pytest.raises(ValueError, match="these prompts have numbers"):
        parse_stages("1: rising\n2: falling")
    assert parse_stages("3: a dog") == ("3: a dog",)
    assert parse_stages("16:9 rising\nfalling") == ("16:9 rising", "falling")
