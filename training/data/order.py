"""Which row of the data a sample takes: a pure function of (seed, k), so that no loader has a state to save."""

from functools import lru_cache

import torch


def row(seed: int, k: int, rows: int) -> int:
    """Sample k of an endless pass over `rows` rows: every epoch takes each row once, in an order of its own."""
    return int(_permutation(seed, k // rows, rows)[k % rows])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, rows: int) -> torch.Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
