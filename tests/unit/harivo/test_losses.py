"""HARIVO's losses: closed forms, zero cases, an independent reference, and which parts get a gradient."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stillmotion.model_patches.harivo import losses
from stillmotion.model_patches.harivo.losses import Queue, decoupled_contrastive, map_change, streamed_change


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def softmax_maps(frames=3, heads=2, tokens=5):
    return torch.randn(2 * frames, heads, tokens, tokens).softmax(-1)


def test_denoising_is_zero_for_the_noise_itself_and_the_variance_for_a_zero_prediction():
    noise = torch.randn(2, 4, 4, 32, 32)
    assert torch.equal(losses.denoising(noise, noise), torch.zeros(2))
    torch.testing.assert_close(losses.denoising(torch.zeros_like(noise), noise), torch.ones(2), rtol=0.03, atol=0)


def test_squares_are_means_so_that_the_size_of_the_picture_does_not_matter():
    for size in (8, 16):
        offset = torch.full((1, 2, 4, size, size), 0.5)
        assert losses.denoising(offset, 0 * offset).item() == pytest.approx(0.25)


@pytest.mark.parametrize("softening", losses.SOFTENINGS)
def test_the_weight_of_the_regulariser_softens_towards_noise(softening):
    from stillmotion.model_patches.core.levels import alpha_bars

    table, time = alpha_bars("linear").float(), torch.arange(1000) / 1000
    weights = losses.softening_weight(table, time, softening)
    assert (weights.diff() < 0).all()
    assert weights[0] > 0.99
    assert weights[-1] < 0.05


def test_the_regulariser_weighs_each_clip_by_its_own_level():
    video, image = torch.zeros(2, 3, 4, 5, 5), torch.ones(2, 3, 4, 5, 5)
    value = losses.regulariser(video, image, alpha_bar=torch.tensor([0.25, 1.0]), time=torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(value, torch.tensor([0.5, 1.0]))


def test_both_predictions_of_the_regulariser_have_their_gradient():
    video, image = (torch.randn(1, 2, 4, 3, 3, requires_grad=True) for _ in range(2))
    losses.regulariser(video, image, alpha_bar=torch.tensor([0.5]), time=torch.tensor([0.5])).sum().backward()
    assert video.grad is not None
    assert image.grad is not None
    torch.testing.assert_close(video.grad, -image.grad)


def test_an_unknown_softening_is_named():
    with pytest.raises(ValueError, match="cubic"):
        losses.softening_weight(torch.ones(1), torch.ones(1), "cubic")  # type: ignore[arg-type]


def test_frames_with_the_same_map_do_not_change_and_one_frame_has_nothing_to_change_to():
    one = softmax_maps(frames=1)
    assert torch.equal(map_change(one.repeat_interleave(4, 0), 4), torch.zeros(2))
    assert torch.equal(map_change(one, 1), torch.zeros(2))


def test_the_change_is_the_mean_over_pairs_of_neighbours():
    maps = softmax_maps(frames=3)
    by_hand = [torch.stack([((clip[i + 1] - clip[i]) ** 2).mean() for i in range(2)]).mean() for clip in maps.split(3)]
    torch.testing.assert_close(map_change(maps, 3), torch.stack(by_hand))


def test_later_layers_weigh_more():
    changes = [torch.tensor([1.0]), torch.tensor([10.0]), torch.tensor([100.0])]
    assert losses.temporal_self_attention(changes).item() == pytest.approx(1 / 3 + 20 / 3 + 100)
    with pytest.raises(ValueError, match="no self-attention map"):
        losses.temporal_self_attention([])


@pytest.mark.parametrize("head_mean", [False, True])
@pytest.mark.parametrize("part", [1, 4, 100])
def test_streaming_equals_the_dense_map_with_its_gradient(part, head_mean):
    query, key = (torch.randn(6, 2, 9, 4, requires_grad=True) for _ in range(2))
    maps = (query @ key.transpose(-1, -2) / 2).softmax(-1)
    dense = map_change(maps.mean(1, keepdim=True) if head_mean else maps, 3)
    expected = torch.autograd.grad(dense.sum(), (query, key))
    streamed = streamed_change(query, key, 3, part=part, head_mean=head_mean)
    torch.testing.assert_close(streamed, dense)
    torch.testing.assert_close(torch.autograd.grad(streamed.sum(), (query, key)), expected)


def test_streaming_keeps_no_map_for_the_way_back():
    """The memory of autograd grows with the features, not with the square of the tokens."""

    def stored(tokens):
        tensors = []
        query, key = (torch.randn(2, 1, tokens, 4, requires_grad=True) for _ in range(2))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t.numel()) or t, lambda t: t):
            streamed_change(query, key, 2, part=8)
        return max(tensors)

    assert stored(64) <= 2 * 64 * 4
    assert stored(256) <= 2 * 256 * 4


class LargestMap(TorchDispatchMode):
    """The number of queries of the largest attention map."""

    queries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._softmax.default:
            self.queries = max(self.queries, result.shape[-2])
        return result


@pytest.mark.parametrize(("part", "queries"), [({"part": 8}, 8), ({"part": 500}, 130), ({}, 64)])
def test_streaming_computes_no_larger_part_of_a_map_than_it_says(part, queries):
    query, key = torch.randn(2, 2, 1, 130, 4)
    with LargestMap() as largest:
        streamed_change(query, key, 2, **part)
    assert largest.queries == queries


def contrastive_by_hand(z1, z2, negatives, tau):
    """The decoupled contrastive loss from its definition, in plain Python numbers."""

    def unit(v):
        length = math.sqrt(sum(x * x for x in v))
        return [x / length for x in v]

    def dot(a, b):
        return sum(x * y for x, y in zip(unit(a), unit(b), strict=True))

    total = []
    for a, b in zip(z1.tolist(), z2.tolist(), strict=True):
        total.append(-dot(a, b) / tau + math.log(sum(math.exp(dot(a, n) / tau) for n in negatives.tolist())))
    return total


def test_the_contrastive_loss_is_its_definition():
    z1, z2, negatives = torch.randn(3, 6), torch.randn(3, 6), torch.randn(5, 6)
    value = decoupled_contrastive(z1, z2, negatives)
    assert value.tolist() == pytest.approx(contrastive_by_hand(z1, z2, negatives, 0.1), rel=1e-4)
    assert value.tolist() == pytest.approx(decoupled_contrastive(7 * z1, 0.1 * z2, 3 * negatives).tolist(), rel=1e-4)


def test_the_positive_pair_is_not_among_the_negatives():
    """Equal frames and one opposite negative: -1/tau - 1/tau. With the positive pair below, near 0."""
    z = torch.randn(1, 6)
    assert decoupled_contrastive(z, z, -z).item() == pytest.approx(-20, rel=1e-5)


def test_without_negatives_there_is_no_loss_but_the_parameters_take_part():
    head = nn.Linear(4, 6)
    z = head(torch.randn(2, 4))
    empty = decoupled_contrastive(z, z, torch.empty(0, 6))
    assert torch.equal(empty, torch.zeros(2))
    empty.sum().backward()
    assert head.weight.grad is not None
    assert torch.equal(head.weight.grad, torch.zeros_like(head.weight))


def test_features_of_the_same_video_are_no_negatives():
    z, negatives = torch.randn(2, 6, requires_grad=True), torch.randn(3, 6)
    same = torch.tensor([[True, False, False], [True, True, True]])
    value = decoupled_contrastive(z, z, negatives, same_video=same)
    expected = decoupled_contrastive(z[:1], z[:1], negatives[1:])
    assert value[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert value[1] == 0
    value.sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_the_queue_forgets_the_oldest_first():
    queue = Queue(4, 2)
    assert queue.negatives().shape == (0, 2)
    rows = torch.arange(12.0).view(6, 2)
    queue.push(rows[:3], torch.tensor([0, 1, 2]))
    assert torch.equal(queue.negatives(), rows[:3])
    queue.push(rows[3:], torch.tensor([3, 4, 4]))
    assert torch.equal(queue.negatives(), rows[2:])
    assert torch.equal(queue.same_video(torch.tensor([4])), torch.tensor([[False, False, True, True]]))
    queue.push(torch.ones(9, 2), torch.arange(9))
    assert torch.equal(queue.negatives(), torch.ones(4, 2))


def test_the_content_of_the_queue_is_its_state_and_has_no_gradient():
    queue, again = Queue(4, 2), Queue(4, 2)
    queue.push(torch.ones(3, 2, requires_grad=True) * 2, torch.arange(3))
    again.load_state_dict(queue.state_dict())
    assert torch.equal(again.negatives(), queue.negatives())
    assert not queue.negatives().requires_grad
    with pytest.raises(ValueError, match="size is 0"):
        Queue(0, 2)


def test_attracting_pairs_lowers_the_contrastive_loss_and_only_the_features_of_the_clip_move():
    z1, z2 = (torch.randn(2, 6, requires_grad=True) for _ in range(2))
    negatives = torch.randn(5, 6, requires_grad=True)
    queue = Queue(5, 6)
    queue.push(negatives, torch.arange(5))
    decoupled_contrastive(z1, z2, queue.negatives()).sum().backward()
    assert negatives.grad is None
    assert z1.grad is not None
    assert z2.grad is not None
    closer = decoupled_contrastive(z1 - 0.1 * z1.grad, z2 - 0.1 * z2.grad, negatives)
    assert (closer < decoupled_contrastive(z1, z2, negatives)).all()
