"""Every kind of image is converted to three channels in 0..1 by a named rule, or refused."""

import pytest
import torch

from stillmotion.model_patches.core.pictures import FITS, fit, same_aspect
from stillmotion.model_patches.dreamvideo.image import pixels, white


def picture(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_alpha_is_laid_over_white():
    clear = torch.cat([picture(1, 4, 5, 3), torch.zeros(1, 4, 5, 1)], dim=-1)
    assert torch.equal(pixels(clear), torch.ones(1, 3, 4, 5))
    full = torch.cat([clear[..., :3], torch.ones(1, 4, 5, 1)], dim=-1)
    torch.testing.assert_close(pixels(full), pixels(full[..., :3]))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (1, 4, 5, 1)])
def test_grey_becomes_three_equal_channels(shape):
    rgb = pixels(picture(*shape))
    assert rgb.shape == (1, 3, 4, 5)
    assert torch.equal(rgb[:, 0], rgb[:, 2])
    assert rgb.std() > 0.1


def test_grey_with_alpha_is_both():
    half = torch.cat([torch.zeros(1, 4, 5, 1), torch.full((1, 4, 5, 1), 0.25)], dim=-1)
    assert torch.equal(pixels(half), torch.full((1, 3, 4, 5), 0.75))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16])
def test_whole_numbers_are_shares_of_the_largest(dtype):
    top = torch.iinfo(dtype).max
    rgb = pixels(torch.tensor([0, top // 2, top]).to(dtype).reshape(1, 1, 3, 1))
    torch.testing.assert_close(rgb[0, 0, 0], torch.tensor([0, 0.5, 1]), rtol=0, atol=0.003)


def test_values_outside_are_cut_off_and_no_numbers_are_refused():
    assert pixels(torch.tensor([-0.5, 2.0]).reshape(1, 1, 2, 1))[0, 0].tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="NaN or infinite values"):
        pixels(torch.full((1, 2, 2, 3), float("nan")))


def test_several_images_and_odd_shapes_are_refused_with_a_remedy():
    with pytest.raises(ValueError, match="the input has 3 images, but one is needed; select one of the batch"):
        pixels(picture(3, 4, 5, 3))
    for shape in ((1, 4, 5, 7), (5,), (1, 0, 5, 3)):
        with pytest.raises(ValueError, match="it has the shape"):
            pixels(torch.zeros(shape))


@pytest.mark.parametrize("rule", FITS)
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (40, 10), (1, 999)])
def test_every_picture_fits_and_white_stays_white(rule, size):
    image = white(size[0], size[1], torch.zeros(1))
    torch.testing.assert_close(fit(image, 16, 12, rule), white(16, 12, image))


def test_the_rules_have_the_named_effects():
    image = torch.zeros(1, 3, 8, 24)
    image[..., 8:16] = 0.5  # a square in the middle of a wide black image
    assert torch.equal(fit(image, 8, 8, "crop"), torch.full((1, 3, 8, 8), 0.5))
    padded = fit(image, 24, 24, "pad")
    assert torch.equal(padded[..., :8, :], torch.ones(1, 3, 8, 24))
    assert torch.equal(padded[..., 8:16, :], image)
    stretched = fit(image, 8, 12, "stretch")
    torch.testing.assert_close(stretched.mean(), image.mean())
    assert torch.equal(fit(image, 8, 24, "pad"), image)


def test_another_aspect_is_noticed_and_another_rule_refused():
    assert same_aspect(512, 512, 256, 256)
    assert same_aspect(1080, 1920, 288, 512)
    assert not same_aspect(512, 512, 256, 264)
    with pytest.raises(ValueError, match="fit is 'squeeze'; choose one of crop, pad, stretch"):
        fit(torch.zeros(1, 3, 4, 4), 8, 8, "squeeze")
