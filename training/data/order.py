"""Which data row a sample uses: a pure function of (seed, k), so that a data loader has no state to save."""

from functools import lru_cache

import torch


def row(seed: int, k: int, rows: int) -> int:
    """The row of sample k in an endless pass over `rows` rows: every epoch visits each row once, in its own order."""
    return int(_permutation(seed, k // rows, rows)[k % rows])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, rows: int) -> torch.Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
