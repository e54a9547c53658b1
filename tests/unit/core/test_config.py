"""Settings from a file: defaults, what they may be, and errors that name the setting and its value."""

from dataclasses import dataclass

import pytest

from stillmotion.model_patches.core.config import MotionConfig, at_least_one, check_channels, known


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One field of every kind that a configuration can have."""

    sizes: tuple[int, ...]
    flag: bool = False
    share: float = 0.5
    word: str = "a"
    number: int | None = None
    inner: Inner | None = None


def read(**values):
    return known(Settings, {"sizes": [1, 2]} | values, "settings")


def test_the_defaults_are_the_sizes_of_animatediff():
    assert MotionConfig(block_channels=(320, 640, 1280, 1280)).to_dict() == {
        "block_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "mid_block": False,
        "heads": 8,
        "max_frames": 32,
        "group_norm": "per_frame",
        "image_norm": "per_frame",
        "position_encoding": True,
        "beta_schedule": None,
        "beta_start": None,
        "beta_end": None,
    }


def test_values_of_the_right_kind_are_a_copy():
    values = {
        "sizes": [1] * 64,
        "flag": True,
        "share": 3,
        "word": "b" * 200,
        "number": 2**20,
        "inner": {"size": 2},
    }
    settings = known(Settings, values, "settings")
    assert settings == values
    assert settings is not values
    assert read(number=None, inner=None, share=-(2.0**20))["number"] is None
    assert read(number=-(2**20))["number"] == -(2**20)
    assert read(sizes=(3,), inner=Inner())["sizes"] == (3,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizes": [1] * 65}, r"sizes is \[1, 1, .*; it must be a list of at most 64 values"),
        ({"sizes": 3}, "sizes is 3; it must be a list of at most 64 values"),
        ({"sizes": [1, "x"]}, r"sizes is \[1, 'x'\]; it must be a list, each a whole number up to 1048576"),
        ({"flag": 1}, "flag is 1; it must be true or false"),
        ({"flag": None}, "flag is None; it must be true or false"),
        ({"share": True}, "share is True; it must be a number up to 1048576"),
        ({"share": float("nan")}, "share is nan; it must be a number up to 1048576"),
        ({"share": 2.0**20 + 1}, "share is 1048577.0; it must be a number up to 1048576"),
        ({"word": "b" * 201}, "it must be a word"),
        ({"word": 1}, "word is 1; it must be a word"),
        ({"number": 2**20 + 1}, "number is 1048577; it must be a whole number up to 1048576 or null"),
        ({"number": 1.0}, "number is 1.0; it must be a whole number up to 1048576 or null"),
        ({"number": False}, "number is False; it must be a whole number up to 1048576 or null"),
        ({"inner": 1}, "inner is 1; it must be a table of settings or null"),
    ],
)
def test_a_value_of_another_kind_or_size_is_named(values, message):
    with pytest.raises(ValueError, match=f"settings: .*{message}$"):
        read(**values)


@pytest.mark.parametrize(
    ("count", "text"), [(57, repr("x" * 57)), (58, repr("x" * 58)), (59, repr("x" * 59)[:60] + "...")]
)
def test_a_long_value_is_shortened_to_sixty_characters(count, text):
    with pytest.raises(ValueError, match=r"settings: flag is") as error:
        read(flag="x" * count)
    assert str(error.value) == f"settings: flag is {text}; it must be true or false"


def test_unknown_settings_are_named_up_to_three():
    with pytest.raises(ValueError, match="unknown setting d; known are sizes, flag, share, word, number, inner"):
        read(d=1)
    with pytest.raises(ValueError, match="unknown setting a, b, c; known are"):
        read(d=1, b=2, a=3, c=4)


def test_a_missing_setting_and_what_is_no_table_are_named():
    with pytest.raises(ValueError, match="settings: sizes is missing"):
        known(Settings, {"flag": True}, "settings")
    with pytest.raises(ValueError, match=r"settings: it is \[1\]; it must be a table of settings"):
        known(Settings, [1], "settings")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None])
def test_sizes_are_whole_numbers_of_at_least_one(value):
    class Sizes:
        width, depth = 1, value

    at_least_one(Sizes, "sizes", "width")
    with pytest.raises(ValueError, match=f"sizes: depth is {value!r}; it must be a whole number of at least 1"):
        at_least_one(Sizes, "sizes", "width", "depth")


def test_channels_are_whole_groups_and_divided_by_the_heads():
    for channels, heads in ((32, 1), (32, 32), (96, 3)):
        check_channels(channels, heads)
    for channels in (0, -32, 16, 33):
        with pytest.raises(ValueError, match=f"{channels} channels are not a multiple of 32"):
            check_channels(channels, 1)
    for heads in (0, -1, 3, 64):
        with pytest.raises(ValueError, match=f"{heads} heads do not divide 32 channels"):
            check_channels(32, heads)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beta_schedule": "cosine", "beta_start": 0.1, "beta_end": 0.2}, "beta_schedule is 'cosine'; choose one of"),
        ({"beta_schedule": "linear", "beta_start": 0.1}, "beta_schedule 'linear' needs beta_start and beta_end"),
        ({"beta_schedule": "linear", "beta_end": 0.1}, "beta_schedule 'linear' needs beta_start and beta_end"),
        ({"image_norm": "none"}, "image_norm is 'none'; choose one of per_frame, per_clip"),
    ],
)
def test_choices_of_a_motion_model_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        MotionConfig(block_channels=(32,), **values)
