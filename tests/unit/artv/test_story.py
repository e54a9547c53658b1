"""Stories: the prompt and the anchor of each frame."""

import pytest

from stillmotion.model_patches.artv.story import DIGITS, MAX_FRAMES, Story, anchor_of, parse_story

STORY = parse_story("3: a cat\n\n  2: a dog \n4: a bird")


def test_each_frame_has_the_prompt_whose_frames_it_is_among():
    texts = [text for count, text in STORY.prompts for _ in range(count)]
    assert STORY.frames == len(texts) == 9
    assert [STORY.text(frame) for frame in range(9)] == texts
    assert STORY.text(500) == "a bird"


def test_the_anchor_is_handed_on_at_the_borders():
    assert [anchor_of(frame, STORY) for frame in range(10)] == [None, 0, 0, 2, 2, 4, 4, 4, 4, 4]
    assert [anchor_of(frame) for frame in range(4)] == [None, 0, 0, 0]


def test_an_anchor_lies_before_its_frame_whatever_the_story():
    for counts in ((1,), (1, 1, 1), (2, 1, 5), (16, 16)):
        story = Story(tuple((count, "x") for count in counts))
        anchors = [anchor_of(frame, story) for frame in range(1, sum(counts) + 3)]
        assert all(anchor is not None and anchor <= frame for frame, anchor in enumerate(anchors))
        assert anchors == sorted(anchors)  # type: ignore[type-var]
        assert len(set(anchors)) <= len(counts)


def test_a_line_without_a_number_has_as_many_frames_as_in_the_paper():
    assert parse_story("a 16:9 picture\n5: b").prompts == ((16, "a 16:9 picture"), (5, "b"))
    assert parse_story("16:9 picture").prompts == ((16, "16:9 picture"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no prompt; write one per line"),
        (" \n\n", "there is no prompt"),
        ("16: a cat\n0: a dog", "'0: a dog' is for 0 frames; give 1 or more"),
        ("8:", "'8:' has no text; describe what its 8 frames show"),
    ],
)
def test_stories_that_tell_nothing_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_story(text)


@pytest.mark.parametrize("text", ["99999999999: a cat", "a cat\n999999: a dog", "9" * 5000 + ": a cat"])
def test_a_story_of_too_many_frames_is_refused_with_the_number(text):
    with pytest.raises(ValueError, match=r"story: .* 1,000,000"):
        parse_story(text)


def test_a_long_story_has_the_prompts_and_anchors_of_its_definition():
    story = parse_story("\n".join(f"{1 + i % 3}: prompt {i}" for i in range(50)))
    frames = [(i, text) for i, (count, text) in enumerate(story.prompts) for _ in range(count)]
    assert story.frames == len(frames)
    for frame, (place, text) in enumerate(frames):
        start = sum(count for count, _ in story.prompts[:place])
        assert (story.place(frame), story.text(frame), story.start(frame)) == (place, text, start)
        assert anchor_of(frame, story) == (max(0, start - 1) if frame else None)
    assert story.place(story.frames + 5) == 49


def test_prompt_travel_text_has_the_first_frame_of_each_prompt():
    story = parse_story('"0": "a cat",\n"24": "a dog",\n"30": "a bird"')
    assert story.prompts == ((24, "a cat"), (6, "a dog"), (16, "a bird"))


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ('"4": "a cat",\n"24": "a dog"', "4, 24"),
        ('"0": "a cat",\n"24": "a dog",\n"24": "a bird"', "0, 24, 24"),
        ('"0": "a cat",\n"24": "a dog",\n"7": "a bird"', "0, 24, 7"),
        (",\n".join(f'"{9 - i}": "a cat"' for i in range(9)), "9, 8, 7, 6, 5, 4, 3, 2,"),
    ],
)
def test_prompt_travel_text_that_does_not_begin_at_0_and_rise_is_refused(text, frames):
    with pytest.raises(ValueError, match=f"for the frames {frames}.* must begin at 0 and rise"):
        parse_story(text)


def test_a_story_that_is_too_long_names_the_line_up_to_its_hundredth_character():
    parse_story(f"{MAX_FRAMES - 16}: a cat\na dog")
    line = f"{MAX_FRAMES - 15}: {'a' * 150}"
    with pytest.raises(ValueError, match=f"up to the line 'a dog' there are {MAX_FRAMES + 1:,} frames"):
        parse_story(f"{line}\na dog")
    with pytest.raises(ValueError, match=f"up to the line '{line[:100]}' there are {MAX_FRAMES + 1:,} frames"):
        parse_story(f"a dog\n{line}")
    with pytest.raises(ValueError, match=f"the line '{'1' * 100}' is for too many frames"):
        parse_story(f"{'1' * (DIGITS + 1)}: a cat")
