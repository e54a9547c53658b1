"""Eq. 5 and its other order: the meaning of the scales, and the predictions that they need."""

import pytest
import torch

from stillmotion.model_patches.dreamvideo.guidance import IMAGE_FIRST, ORDERS, TEXT_FIRST, guided, needed, weights

SCALES = [(7.5, 2.0), (1.0, 1.0), (0.0, 0.0), (3.0, 3.0), (1.0, 4.0), (5.0, 0.0), (0.0, 2.0)]


def predictions():
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, 4, generator=g) for name in ("none", "text", "image", "both")}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("text", "image"), SCALES)
def test_the_weights_add_up_to_one_and_make_the_same_sum_as_the_chain(order, text, image):
    factors, f = weights(text, image, order), predictions()
    assert sum(factors.values()) == pytest.approx(1)
    expected = sum(factor * f[branch] for branch, factor in factors.items())
    torch.testing.assert_close(guided(f, text, image, order), expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("text", "image"), SCALES)
def test_predictions_that_are_not_needed_change_nothing(order, text, image):
    f = predictions()
    few = {branch: f[branch] for branch in needed(text, image, order)}
    torch.testing.assert_close(guided(few, text, image, order), guided(f, text, image, order))


def test_which_predictions_are_needed():
    assert needed(7.5, 2.0) == ["none", "text", "both"]
    assert needed(7.5, 2.0, IMAGE_FIRST) == ["none", "image", "both"]
    assert needed(1, 1) == needed(1, 1, IMAGE_FIRST) == ["both"]
    assert needed(3, 0) == ["none", "text"]
    assert needed(3, 3) == ["none", "both"]
    assert needed(0, 0) == ["none"]


def test_the_orders_agree_where_text_and_image_act_on_their_own():
    """f(c_t, c_i) = f(0, 0) + a(c_t) + b(c_i): then the order does not matter."""
    f = predictions()
    f["both"] = f["text"] + f["image"] - f["none"]
    torch.testing.assert_close(guided(f, 4, 2, TEXT_FIRST), guided(f, 4, 2, IMAGE_FIRST))


def test_missing_predictions_and_unknown_orders_are_named():
    f = predictions()
    del f["text"]
    with pytest.raises(ValueError, match="the prediction 'text' is missing"):
        guided(f, 7.5, 2.0)
    with pytest.raises(ValueError, match="order is 'both first'; choose one of text first, image first"):
        guided(f, 7.5, 2.0, "both first")
