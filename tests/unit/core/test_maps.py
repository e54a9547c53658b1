"""Attention maps are columns of the attention matrix."""

import torch

from stillmotion.model_patches.core.maps import column_maps


def test_they_are_the_columns_of_the_softmax_averaged_over_heads():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(3, n, 8, generator=generator) for n in (6, 5))
    reference = torch.zeros(3, 2, 6)
    for i in range(3):
        for head in (slice(0, 4), slice(4, 8)):
            scores = torch.tensor([[float(a @ b) / 2 for b in k[i, :, head]] for a in q[i, :, head]])  # sqrt(d) = 2
            weights = scores.exp() / scores.exp().sum(1, keepdim=True)
            reference[i] += weights[:, 1:3].T / 2
    torch.testing.assert_close(column_maps(q, k, 2, slice(1, 3)), reference)


def test_all_columns_together_sum_to_one_in_float32():
    q, k = torch.randn(1, 6, 8, dtype=torch.float16), torch.randn(1, 5, 8, dtype=torch.float16)
    maps = column_maps(q, k, 4, slice(None))
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(1), torch.ones(1, 6))
