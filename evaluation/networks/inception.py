"""The Inception Score: how sure a classifier is of each sample, and how different the samples are for it.

Salimans et al., arXiv 1606.03498, section 4: exp(E_x KL(p(y|x) || p(y))). 1 for samples that all look alike (or like
nothing), the number of classes at most.
"""

from itertools import pairwise

import torch
from torch import Tensor

SPLITS = 10


def inception_score(probabilities: Tensor, splits: int = SPLITS) -> float:
    """probabilities: (n, classes), rows add up to 1. The mean of the scores of `splits` equal parts, in their order.

    ValueError when there are fewer samples than parts.

    >>> inception_score(torch.eye(4), splits=1)
    4.0
    """
    if probabilities.ndim != 2 or not 1 <= splits <= len(probabilities):
        raise ValueError(
            f"Inception Score: {tuple(probabilities.shape)} probabilities in {splits} parts; give (n, classes), n of "
            "the parts or more"
        )
    p = probabilities.double()
    surprise = torch.xlogy(p, p).sum(1)
    edges = [i * len(p) // splits for i in range(splits + 1)]
    scores = []
    for low, high in pairwise(edges):
        mean = p[low:high].mean(0)
        scores.append((surprise[low:high].mean() - torch.xlogy(mean, mean).sum()).exp())
    return torch.stack(scores).mean().item()
