"""The plan of a video in stages, and the correction of its colours."""

import pytest
import torch

from stillmotion.model_patches.dreamvideo.stages import StagePlan, colours_of, parse_stages, reanchored


def pictures(n, seed=0, size=(5, 7)):
    """Frames of random colours, each with its own mean and contrast."""
    draw = torch.Generator().manual_seed(seed)
    tint, contrast = torch.rand(n, 1, 1, 3, generator=draw), torch.rand(n, 1, 1, 3, generator=draw)
    return 0.5 * tint + 0.4 * contrast * torch.rand(n, *size, 3, generator=draw)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("stages", [1, 2, 5])
@pytest.mark.parametrize("frames", [2, 8])
def test_every_frame_of_the_video_belongs_to_one_stage(stages, frames, drop):
    plan = StagePlan(prompts=("a",) * stages, frames=frames, drop_doubled=drop)
    places = [range(plan.first(s), plan.first(s) + plan.kept(s)) for s in range(stages)]
    assert [place for part in places for place in part] == list(range(plan.total))
    assert plan.total == stages * frames - (stages - 1) * drop
    assert plan.kept(0) == frames


def test_more_stages_move_nothing():
    two, five = (StagePlan(prompts=("a",) * n, frames=4, drop_doubled=True) for n in (2, 5))
    assert [two.first(s) for s in range(3)] == [five.first(s) for s in range(3)]


def test_invalid_plans_of_a_video_are_named():
    with pytest.raises(ValueError, match="there is no prompt; write one per stage"):
        StagePlan(prompts=())
    with pytest.raises(ValueError, match=r"frames is 0; a stage needs 1 or more$"):
        StagePlan(prompts=("a",), frames=0)
    with pytest.raises(ValueError, match="frames is 1; a stage needs 2 or more, because the doubled frame is dropped"):
        StagePlan(prompts=("a", "b"), frames=1, drop_doubled=True)
    assert StagePlan(prompts=("a", "b"), frames=1).total == 2


@pytest.mark.parametrize("text", ["", "\n\n", "  \n"])
def test_an_empty_list_is_named(text):
    with pytest.raises(ValueError, match="there is no prompt; write one line per stage"):
        parse_stages(text)


@pytest.mark.parametrize(("text", "stage", "of"), [("a\n\nb", 2, 3), ("\na", 1, 2), ("a\nb\n  \n\nc\n", 3, 5)])
def test_a_prompt_that_is_missing_between_others_is_named(text, stage, of):
    with pytest.raises(ValueError, match=f"stage {stage} of {of} has no prompt"):
        parse_stages(text)


def test_lines_are_stages_and_two_quotes_are_no_text():
    assert parse_stages('  a cat \n""\n5: "b"\n\n') == ("a cat", "", '5: "b"')


def test_pictures_get_the_colours_of_the_first_image():
    image = pictures(1, seed=1)
    result = reanchored(pictures(4), colours_of(image))
    for picture in result.split(1):
        torch.testing.assert_close(colours_of(picture), colours_of(image))


def test_an_image_on_itself_stays_and_so_does_what_was_done_before():
    image, other = pictures(1, seed=1), pictures(3)
    torch.testing.assert_close(reanchored(image, colours_of(image)), image)
    once = reanchored(other, colours_of(image))
    torch.testing.assert_close(reanchored(once, colours_of(image)), once)


def test_reanchoring_reverts_drift():
    """Any contrast and tint for each channel."""
    image = pictures(1)
    drifted = image * torch.tensor([1.4, 0.6, 1.1]) + torch.tensor([-0.1, 0.2, 0.05])
    torch.testing.assert_close(reanchored(drifted, colours_of(image)), image)


def test_every_picture_is_for_itself():
    several, colours = pictures(3), colours_of(pictures(1, seed=1))
    alone = torch.cat([reanchored(picture, colours) for picture in several.split(1)])
    torch.testing.assert_close(reanchored(several, colours), alone)


def test_flat_colours_are_moved_and_nothing_else():
    grey, image = torch.full((2, 4, 4, 3), 0.25), pictures(1)
    mean = colours_of(image)[0]
    torch.testing.assert_close(reanchored(grey, colours_of(image)), mean.expand(2, 4, 4, 3))
    result = reanchored(image, colours_of(grey[:1]))  # a first image without contrast does not remove contrast
    torch.testing.assert_close(result, image - mean + 0.25)
    assert torch.isfinite(result).all()


def test_the_colours_of_several_pictures_are_refused():
    with pytest.raises(ValueError, match="those of one picture, but 2 were given"):
        colours_of(pictures(2))
