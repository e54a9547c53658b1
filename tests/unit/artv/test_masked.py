"""Masked diffusion, noise augmentation, and omitted conditions."""

from dataclasses import replace

import pytest
import torch

from stillmotion.model_patches.artv.conditions import conditions
from stillmotion.model_patches.artv.config import STATICS, ArtvConfig
from stillmotion.model_patches.artv.masked import masked_noise, masked_prediction, noise_from_velocity, static_noise
from stillmotion.model_patches.artv.noise import augmented, level_shift
from stillmotion.model_patches.core.levels import alpha_bars, sigma_from_alpha_bar

ABAR = alpha_bars()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=[20, 200, 900])
def abar(request):
    return ABAR[request.param]


@pytest.mark.parametrize("form", STATICS)
def test_eq_7_on_the_noise_is_eq_7_on_the_prediction(abar, form):
    y_t, eps, y_ref, m = (draw(2, 4, 5, 5, seed=i) for i in range(4))
    m, sigma = m.sigmoid(), sigma_from_alpha_bar(abar)
    x = y_t / abar.sqrt()
    blended = masked_noise(eps, static_noise(y_t, y_ref, abar, form), m)
    on_x0 = masked_prediction(x - sigma * eps, x, y_ref, sigma, m, form)
    torch.testing.assert_close(on_x0, x - sigma * blended)


def test_the_consistent_static_part_is_the_noise_of_a_frame_that_does_not_move(abar):
    y, eps = draw(1, 4, 8, 8), draw(1, 4, 8, 8, seed=1)
    y_t = abar.sqrt() * y + (1 - abar).sqrt() * eps
    torch.testing.assert_close(static_noise(y_t, y, abar), eps)
    for form in ("paper", "reversed"):
        assert (static_noise(y_t, y, abar, form) - eps).square().mean() > 1e-3
    assert (static_noise(y_t, y, abar, "paper") * eps).mean() < 0  # with the wrong sign, as printed in the text
    with pytest.raises(ValueError, match="the static part is 'both'"):
        static_noise(y_t, y, abar, "both")


def test_a_mask_of_one_copies_and_a_mask_of_zero_changes_no_bit(abar):
    x_0, x, y_ref = (draw(1, 4, 5, 5, seed=i) for i in range(3))
    one, zero = torch.ones(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)
    assert torch.equal(masked_prediction(x_0, x, y_ref, sigma_from_alpha_bar(abar), one), y_ref)
    assert torch.equal(masked_prediction(x_0, x, y_ref, sigma_from_alpha_bar(abar), zero), x_0)


def test_eps_of_a_velocity(abar):
    y, eps = draw(3), draw(3, seed=1)
    y_t = abar.sqrt() * y + (1 - abar).sqrt() * eps
    torch.testing.assert_close(noise_from_velocity(abar.sqrt() * eps - (1 - abar).sqrt() * y, y_t, abar), eps)


def test_augmentation_is_eq_3_item_by_item():
    y, eps = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1)
    level = torch.tensor([0, 200, 550])
    noisy = augmented(y, eps, level, ABAR)
    for i, t in enumerate(level):
        torch.testing.assert_close(noisy[i], ABAR[t].sqrt() * y[i] + (1 - ABAR[t]).sqrt() * eps[i])
    assert ABAR[200].sqrt().item() == pytest.approx(0.868, abs=1e-3)  # values of papers for SD's schedule
    with pytest.raises(ValueError, match="the levels go from 0 to 1000; give levels from 0 to 999"):
        augmented(y, eps, torch.tensor([0, 3, 1000]), ABAR)


@pytest.mark.parametrize("form", ["added", "inside"])
def test_the_level_adds_nothing_at_0_and_something_above(form):
    torch.manual_seed(0)
    embed = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64))
    t = torch.tensor([3, 700, 700, 700])
    shift = level_shift(embed, 32, t, torch.tensor([0, 0, 200, 201]), form)
    assert shift is not None
    assert torch.equal(shift[:2], torch.zeros(2, 64))
    assert shift[2].abs().max() > 1e-3
    assert (shift[2] - shift[3]).abs().max() > 1e-5
    assert level_shift(embed, 32, t, t, "none") is None


def test_the_shift_of_a_level_is_the_difference_of_two_embeddings():
    torch.manual_seed(0)
    embed = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64))
    t, level, zero = torch.tensor([3, 700]), torch.tensor([550, 20]), torch.tensor([0, 0])

    def features(steps):
        angle = steps[:, None] / 10000 ** (torch.arange(16) / 16)
        return torch.cat([angle.cos(), angle.sin()], dim=1)

    added = embed(features(level)) - embed(features(zero))
    inside = embed(features(t) + features(level) - features(zero)) - embed(features(t))
    for form, shift in (("added", added), ("inside", inside)):
        torch.testing.assert_close(level_shift(embed, 32, t, level, form), shift, rtol=1e-4, atol=1e-4)


CONFIG = ArtvConfig(block_channels=(32,), attention=(True,), heads=(4,), mask_channels=(16,), mask_heads=(2,))


def make_conditions(config=CONFIG, drop=((False, False), (True, False), (False, True), (True, True)), references=None):
    n = len(drop)
    references = draw(n, 2, 4, 8, 8).float() if references is None else references
    dropped = torch.tensor(drop)
    return references, conditions(
        config,
        references,
        draw(n, 4, 8, 8, seed=1).float(),
        draw(n, 3, 4, 8, 8, seed=2).float(),
        torch.full((n,), 200),
        ABAR,
        no_references=dropped[:, 0],
        no_anchor=dropped[:, 1],
    )


def test_omitted_conditions_are_zeros_and_the_others_do_not_change():
    references, conds = make_conditions()
    whole = make_conditions(drop=((False, False),) * 4)[1]
    assert conds.level.tolist() == [200, 200, 200, 0]
    assert conds.blank.tolist() == [False, True, False, True]
    for i, (no_references, no_anchor) in enumerate(((False, False), (True, False), (False, True), (True, True))):
        expected = torch.zeros_like(whole.references[i]) if no_references else whole.references[i]
        assert torch.equal(conds.references[i], expected)
        assert torch.equal(conds.static[i], torch.zeros(4, 8, 8) if no_references else references[i, 0])
        patches = conds.tokens[i, :, :64]
        assert torch.equal(patches, torch.zeros_like(patches) if no_anchor else whole.tokens[i, :, :64])
    assert (whole.references[0, :4] - references[0, 0]).std() > 0.3  # the reference is noised


def test_nothing_of_a_left_out_reference_gets_through():
    references = draw(1, 2, 4, 8, 8).float()
    references[0, 1, 0, 0, 0] = float("nan")
    _, conds = make_conditions(drop=((True, False),), references=references)
    assert all(bool(torch.isfinite(t.float()).all()) for t in (conds.references, conds.tokens, conds.static))


def test_the_static_part_may_take_the_augmented_reference():
    config = replace(CONFIG, static_reference="augmented")
    _, conds = make_conditions(config)
    assert torch.equal(conds.static[0], conds.references[0, :4])


def test_clip_tokens_are_used_unchanged():
    config = replace(CONFIG, anchor="clip", anchor_width=24)
    tokens, zero = draw(2, 5, 24).float(), torch.zeros(2, 2, 4, 8, 8)
    drop = torch.tensor([False, True])
    rules = {"no_references": torch.tensor([False, False]), "no_anchor": drop}
    conds = conditions(config, zero, tokens, torch.zeros(2, 3, 4, 8, 8), torch.tensor([200, 200]), ABAR, **rules)
    assert torch.equal(conds.tokens, torch.stack([tokens[0], torch.zeros(5, 24)]))
