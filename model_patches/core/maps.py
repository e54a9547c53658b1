"""Attention maps, for looking at: softmax(q k^T / sqrt(d)) at a few columns. Hosts give q and k of their own layers."""

import torch
from torch import Tensor


def column_maps(q: Tensor, k: Tensor, heads: int, columns: slice) -> Tensor:
    """Mean over heads of the weights of some keys; the softmax is over all keys, in float32.

    q: (b, pixels, heads d), k: (b, keys, heads d) -> (b, columns, pixels), on the CPU. One item of the batch at a time,
    as the whole is pixels x keys x heads for each.
    """
    found = []
    for queries, keys in zip(q.split(1), k.split(1), strict=True):
        one, other = (t.float().unflatten(2, (heads, -1)).transpose(1, 2) for t in (queries, keys))  # (1, heads, ., d)
        weights = (one @ other.transpose(2, 3) * one.shape[-1] ** -0.5).softmax(-1)
        found.append(weights[..., columns].mean(1).transpose(1, 2).cpu())
    return torch.cat(found)
