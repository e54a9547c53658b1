"""How images are fitted to the size of a video."""

import pytest
import torch

from stillmotion.model_patches.core.pictures import FITS, fit, same_aspect


def stripes(height: int, width: int) -> torch.Tensor:
    """Each column has its own grey value, from 0 on the left to 1 on the right."""
    return torch.linspace(0, 1, width).expand(1, 3, height, width)


@pytest.mark.parametrize("rule", FITS)
def test_an_image_of_the_right_size_stays_as_it_is(rule):
    image = torch.rand(1, 3, 6, 10)
    assert torch.equal(fit(image, 6, 10, rule), image)


def test_crop_keeps_the_middle():
    image = stripes(4, 9)
    assert torch.equal(fit(image, 4, 5, "crop"), image[..., 2:7])
    upright = image.transpose(2, 3)
    assert torch.equal(fit(upright, 5, 4, "crop"), upright[:, :, 2:7])
    assert torch.equal(fit(image, 4, 4, "crop"), image[..., 2:6])  # an odd rest: one column less on the left


def test_crop_takes_the_largest_part_and_resizes_it():
    image = stripes(4, 12)
    cut = torch.nn.functional.interpolate(image[..., 2:10], (2, 4), mode="bilinear", antialias=True)
    assert torch.equal(fit(image, 2, 4, "crop"), cut)


def test_pad_adds_white_edges_on_both_sides():
    image = torch.full((1, 3, 4, 4), 0.25)
    wide = fit(image, 4, 9, "pad")
    assert torch.equal(wide[..., 2:6], image)
    assert (wide[..., :2] == 1).all()
    assert (wide[..., 6:] == 1).all()
    high = fit(image, 9, 4, "pad")
    assert torch.equal(high[:, :, 2:6], image)
    assert (high[:, :, :2] == 1).all()
    assert (high[:, :, 6:] == 1).all()


def test_pad_keeps_the_aspect_ratio_of_an_image_that_is_not_square():
    image = torch.full((1, 3, 4, 6), 0.25)
    wide = fit(image, 4, 11, "pad")  # an odd rest: one column less on the left
    assert torch.equal(wide[..., 2:8], image)
    assert (wide[..., :2] == 1).all()
    assert (wide[..., 8:] == 1).all()
    upright = image.transpose(2, 3)
    high = fit(upright, 11, 4, "pad")
    assert torch.equal(high, wide.transpose(2, 3))


def test_stretch_uses_the_whole_image():
    image = stripes(4, 8)
    stretched = fit(image, 4, 4, "stretch")
    assert stretched.shape == (1, 3, 4, 4)
    assert stretched[..., 0].max() < 0.15
    assert stretched[..., -1].min() > 0.85


def test_values_stay_between_0_and_1_where_the_filter_overshoots():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 1
    assert fit(image, 16, 16, mode="bicubic").aminmax() == (0, 1)


def test_the_default_is_crop():
    image = torch.rand(1, 3, 4, 9)
    assert torch.equal(fit(image, 4, 5), fit(image, 4, 5, "crop"))


def test_another_rule_is_refused_by_name():
    with pytest.raises(ValueError, match="fit is 'zoom'; choose one of crop, pad, stretch"):
        fit(torch.zeros(1, 3, 4, 4), 4, 4, "zoom")


@pytest.mark.parametrize(
    ("image", "video", "same"),
    [
        ((4, 8), (2, 4), True),
        ((8, 4), (4, 2), True),
        ((4, 8), (4, 8), True),
        ((100, 199), (50, 100), True),  # 99.5 rounds to 100
        ((4, 8), (4, 4), False),
        ((4, 8), (2, 8), False),
        ((1, 9), (9, 1), False),
    ],
)
def test_whether_the_aspect_ratio_is_the_same(image, video, same):
    assert same_aspect(*image, *video) is same


def test_a_thin_image_keeps_at_least_one_pixel():
    assert fit(torch.rand(1, 3, 1, 9), 9, 1, "crop").shape == (1, 3, 9, 1)
    assert fit(torch.rand(1, 3, 1, 9), 9, 1, "pad").shape == (1, 3, 9, 1)


def test_of_a_much_too_wide_image_crop_keeps_one_column_of_pixels():
    image = stripes(1, 9)
    assert torch.equal(fit(image, 9, 1, "crop"), image[..., 4:5].expand(1, 3, 9, 1))
    assert torch.equal(fit(image.transpose(2, 3), 1, 9, "crop"), image[..., 4:5].expand(1, 3, 1, 9))
