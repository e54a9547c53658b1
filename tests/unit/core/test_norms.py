"""GroupNorms over whole clips."""

import pytest
import torch
from torch import nn

from stillmotion.model_patches.core.norms import as_frames, as_volumes, norms_over_clips

CLIPS, FRAMES = 2, 3


def batch():
    return torch.randn(CLIPS * FRAMES, 32, 4, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(
        1.0, CLIPS * FRAMES + 1
    ).view(-1, 1, 1, 1)


def test_a_clip_is_one_volume_with_its_frames_in_order():
    x = batch()
    volumes = as_volumes(x, FRAMES)
    assert volumes.shape == (CLIPS, 32, FRAMES, 4, 5)
    assert torch.equal(volumes[1, :, 2], x[1 * FRAMES + 2])
    assert torch.equal(as_frames(volumes), x)


def test_statistics_are_those_of_the_clip():
    """By hand: each group of channels of a clip has mean 0 and variance 1 over its frames and pixels."""
    norm = nn.GroupNorm(8, 32, eps=0.0)
    with norms_over_clips([norm], FRAMES):
        y = norm(batch())
    groups = y.view(CLIPS, FRAMES, 8, 4, 4, 5).transpose(1, 2).flatten(2)
    torch.testing.assert_close(groups.mean(-1), torch.zeros(CLIPS, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(groups.var(-1, unbiased=False), torch.ones(CLIPS, 8), atol=1e-4, rtol=0)
    assert not torch.allclose(y, norm(batch()), atol=0.1)


def test_afterwards_the_norm_is_as_before_even_after_an_error():
    norm, x = nn.GroupNorm(8, 32), batch()
    before = norm(x)
    with pytest.raises(RuntimeError, match="stop"), norms_over_clips([norm], FRAMES):
        raise RuntimeError("stop")
    assert torch.equal(norm(x), before)
    assert not norm._forward_hooks
    assert not norm._forward_pre_hooks
