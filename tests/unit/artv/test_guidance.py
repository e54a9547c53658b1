"""Eq. 8, compared with an equivalent form: an affine combination for any set of conditions."""

import pytest
import torch

from stillmotion.model_patches.artv.guidance import CONDITIONS, Weights, guided, needed
from stillmotion.model_patches.artv.masked import masked_prediction


def predictions(seed=0, shape=(2, 4, 3, 3)):
    generator = torch.Generator().manual_seed(seed)
    full, *others = torch.randn(1 + len(CONDITIONS), *shape, generator=generator, dtype=torch.float64)
    return full, dict(zip(CONDITIONS, others, strict=True))


def test_the_papers_weights_written_out():
    full, without = predictions()
    expected = 8 * full - 0.25 * without["reference"] - 0.25 * without["anchor"] - 6.5 * without["text"]
    torch.testing.assert_close(guided(full, without, Weights()), expected)


def test_the_weights_sum_to_one():
    full, without = predictions()
    shifted = guided(full + 3, {name: p + 3 for name, p in without.items()}, Weights(0.5, -0.2, 3))
    torch.testing.assert_close(shifted, guided(full, without, Weights(0.5, -0.2, 3)) + 3)
    same = guided(full, dict.fromkeys(CONDITIONS, full), Weights())
    assert torch.equal(same, full)


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
def test_noise_and_clean_latent_are_guided_alike(sigma):
    x = predictions(1)[0]
    eps, without = predictions()
    weights = Weights(0.4, 0.1, 6.5)
    of_eps = x - sigma * guided(eps, without, weights)
    of_x_0 = guided(x - sigma * eps, {name: x - sigma * p for name, p in without.items()}, weights)
    torch.testing.assert_close(of_x_0, of_eps)


def test_masks_that_disagree_carry_a_latent_away_and_one_mask_does_not():
    """A network whose prediction is its latent, whatever the text; the previous frame is 0."""
    x, m, m_text = torch.ones(1, 4, 2, 2, dtype=torch.float64), 0.3, 0.5

    def prediction(mask):
        return masked_prediction(x, x, torch.zeros_like(x), torch.ones(1), torch.full_like(x[:, :1], mask))

    each = guided(prediction(m), {"text": prediction(m_text)}, Weights())
    one = prediction(m) + (1 - m) * (guided(x, {"text": x}, Weights()) - x)
    torch.testing.assert_close(each, 2 * x)
    torch.testing.assert_close(one, 0.7 * x)


def test_text_alone_is_classifier_free_guidance():
    full, without = predictions()
    cfg = 7.5
    expected = without["text"] + cfg * (full - without["text"])
    torch.testing.assert_close(guided(full, {"text": without["text"]}, Weights(0, 0, cfg - 1)), expected)


def test_predictions_without_weight_or_condition_are_not_computed():
    full, without = predictions()
    for weights in (Weights(), Weights(0, 0.25, 6.5), Weights(0.25, 0, 0), Weights(0, 0, 0)):
        names = needed(weights)
        assert set(names) == {name for name in CONDITIONS if getattr(weights, name) != 0}
        torch.testing.assert_close(
            guided(full, {name: without[name] for name in names}, weights), guided(full, without, weights)
        )
    assert needed(Weights(), ["text", "anchor"]) == ("anchor", "text")


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_are_numbers(weight):
    with pytest.raises(ValueError, match=f"the weight of anchor is {weight}; give a finite number"):
        Weights(anchor=weight)
