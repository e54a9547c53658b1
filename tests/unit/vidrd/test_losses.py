"""Eq. 9 term by term: values worked out by hand, and where the gradients go."""

import pytest
import torch

from stillmotion.model_patches.vidrd.losses import (
    DISC,
    REC,
    REG,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_hinge,
    divergence,
    generator_hinge,
    gradient_difference,
    reconstruction,
    started,
)


def pictures(seed, size=32):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_weights_are_those_of_the_paper():
    assert (REC, REG, DISC) == (1.0, 1e-5, 0.5)


def test_equal_images_cost_nothing_and_a_constant_shift_costs_l1_alone():
    x = pictures(0)
    assert reconstruction(x, x, gradient_difference) == 0
    torch.testing.assert_close(gradient_difference(x + 0.25, x), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(reconstruction(x + 0.25, x, gradient_difference), torch.tensor(0.25))


def test_a_blurred_edge_costs_more_than_its_l1():
    x = torch.zeros(1, 3, 4, 4)
    x[..., 2:] = 1.0
    y = x.clone()
    y[..., 2] = 0.5  # |x - y| is 0.5 in a quarter of the pixels; two of three differences per row are 0.5 off
    torch.testing.assert_close(reconstruction(y, x, gradient_difference), torch.tensor(0.125 + 2 * 0.5 / 3))


def test_the_perceptual_term_is_added_as_it_is():
    x, y = pictures(0), pictures(1)
    torch.testing.assert_close(
        reconstruction(x, y, lambda a, b: (a - b).square().mean()), (x - y).abs().mean() + (x - y).square().mean()
    )


def test_the_divergence_is_that_of_torch():
    mean, std = torch.randn(50), torch.rand(50) + 0.5
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(torch.zeros(50), torch.ones(50))).mean()
    torch.testing.assert_close(divergence(mean, std**2), expected)
    assert divergence(torch.zeros(5), torch.ones(5)) == 0


def test_the_hinge_stops_where_the_scores_are_sure():
    assert discriminator_hinge(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0])) == 0
    assert discriminator_hinge(torch.zeros(4), torch.zeros(4)) == 1
    assert discriminator_hinge(torch.tensor([-1.0]), torch.tensor([0.5])) == 0.5 * (2 + 1.5)
    assert generator_hinge(torch.tensor([1.0, 2.0])) == -1.5


def test_the_adaptive_weight_makes_both_pull_alike():
    last = torch.ones(3, requires_grad=True)
    rec, disc = (last * torch.tensor([3.0, 4.0, 0.0])).sum(), (last * torch.tensor([0.0, 0.0, 0.5])).sum()
    weight = adaptive_weight(rec, disc, last)
    torch.testing.assert_close(weight, torch.tensor(5 / 0.5001))
    assert not weight.requires_grad
    assert adaptive_weight(rec * 1e6, disc, last) == 1e4
    (rec + weight * disc).backward()  # the graph is still there
    assert last.grad is not None
    assert last.grad[:2].norm() == pytest.approx(last.grad[2].item(), rel=1e-3)


def test_the_start_is_a_step():
    assert [started(step, 3) for step in (0, 2, 3, 9)] == [0, 0, 1, 1]
    assert started(0, 0) == 1


def test_a_patch_score_sees_a_patch_only():
    torch.manual_seed(0)
    net, x = PatchDiscriminator(width=8, layers=1), pictures(0, 64).requires_grad_()
    net.net[3] = torch.nn.Identity()  # its norm depends on the whole image
    scores = net(x)
    assert scores.shape[:2] == (2, 1)
    scores[0, 0, 5, 5].backward()
    assert x.grad is not None
    region = x.grad[0].abs().sum(0) > 0
    assert 0 < region.sum() <= 16**2 * 2
    assert not x.grad[1].any()


def test_frames_are_judged_alone():
    torch.manual_seed(0)
    net, x = PatchDiscriminator(width=8), pictures(0)
    torch.testing.assert_close(net(x)[1:], net(x[1:]))


def test_the_frozen_judge_teaches_the_decoder_and_not_itself():
    torch.manual_seed(0)
    net, x = PatchDiscriminator(width=8), pictures(0).requires_grad_()
    torch.testing.assert_close(net.frozen(x), net(x))
    generator_hinge(net.frozen(x)).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())
    discriminator_hinge(net(pictures(1)), net(x.detach())).backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("sizes", "convolutions"),
    [
        # the 70 x 70 discriminator of Isola et al., appendix 6.1.2: C64-C128-C256-C512 and a convolution to one score
        ({}, [(3, 64, 2, True), (64, 128, 2, False), (128, 256, 2, False), (256, 512, 1, False), (512, 1, 1, True)]),
        ({"width": 8, "layers": 1}, [(3, 8, 2, True), (8, 16, 1, False), (16, 1, 1, True)]),
        (
            {"width": 1, "layers": 4},  # never wider than eight times the first
            [(3, 1, 2, True), (1, 2, 2, False), (2, 4, 2, False), (4, 8, 2, False), (8, 8, 1, False), (8, 1, 1, True)],
        ),
    ],
)
def test_the_discriminator_is_that_of_pix2pix(sizes, convolutions):
    """Input, output, stride and bias of each convolution; those before a norm have no bias."""
    net = PatchDiscriminator(**sizes).net
    layers = [layer for layer in net if isinstance(layer, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0], c.bias is not None) for c in layers] == convolutions
    assert {(c.kernel_size, c.padding) for c in layers} == {((4, 4), (1, 1))}
    norms = [layer for layer in net if isinstance(layer, torch.nn.GroupNorm)]
    assert [norm.num_channels for norm in norms] == [out for _, out, _, _ in convolutions[1:-1]]
    assert {layer.negative_slope for layer in net if isinstance(layer, torch.nn.LeakyReLU)} == {0.2}
