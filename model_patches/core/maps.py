"""Attention maps for visualisation: some columns of softmax(q k^T / sqrt(d)). Hosts pass q and k of their layers."""

import torch
from torch import Tensor


def column_maps(q: Tensor, k: Tensor, heads: int, columns: slice) -> Tensor:
    """Attention weights of the keys in `columns`, averaged over heads; the softmax is over all keys, in float32.

    q: (b, pixels, heads d), k: (b, keys, heads d) -> (b, columns, pixels), on the CPU. To save memory, one item of the
    batch is computed at a time: each needs pixels x keys x heads numbers.
    """
    maps = []
    for queries, keys in zip(q.split(1), k.split(1), strict=True):
        q_heads, k_heads = (
            t.float().unflatten(2, (heads, -1)).transpose(1, 2) for t in (queries, keys)
        )  # (1, heads, ., d)
        weights = (q_heads @ k_heads.transpose(2, 3) * q_heads.shape[-1] ** -0.5).softmax(-1)
        maps.append(weights[..., columns].mean(1).transpose(1, 2).cpu())
    return torch.cat(maps)
