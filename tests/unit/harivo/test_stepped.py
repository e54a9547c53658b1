"""The schedule of HARIVO's guidance scale."""

import pytest

from stillmotion.model_patches.harivo.stepped import SteppedScale


def test_the_papers_schedule_changes_at_seven_tenths_of_the_time():
    scale = SteppedScale()
    assert [scale.at(t) for t in (1.0, 0.71, 0.7, 0.5, 0.0)] == [12.5, 12.5, 7.5, 7.5, 7.5]


def test_any_number_of_steps_from_words():
    assert SteppedScale.parse("0:5").steps == ((0.0, 5.0),)
    scale = SteppedScale.parse(" 0.9:15, 0.7:10,0:7.5,")
    assert [scale.at(t) for t in (0.95, 0.8, 0.1)] == [15, 10, 7.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.7:12, x:3", "'x:3' is not"),
        ("0.7", "'0.7' is not"),
        ("0.7:12", "do not fall from below 1 to 0"),
        ("0.3:12, 0.7:3, 0:1", "do not fall"),
        ("1:12, 0:3", "do not fall"),
        ("0.7:-1, 0:3", "a scale is negative"),
    ],
)
def test_invalid_schedules_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        SteppedScale.parse(text)


def test_no_steps_at_all_are_named():
    with pytest.raises(ValueError, match="the times are missing do not fall"):
        SteppedScale(())
