"""The Inception Score: how certain a classifier is of each sample, and how diverse its classes are.

Salimans et al., arXiv 1606.03498, section 4: exp(E_x KL(p(y|x) || p(y))). It is 1 if all samples look alike (or like no
class), and at most the number of classes.
"""

from itertools import pairwise

import torch
from torch import Tensor

SPLITS = 10


def inception_score(probabilities: Tensor, splits: int = SPLITS) -> float:
    """The mean score of `splits` equal parts, in order. probabilities: (n, classes), whose rows add up to 1.

    ValueError when there are fewer samples than parts.

    >>> inception_score(torch.eye(4), splits=1)
    4.0
    """
    if probabilities.ndim != 2 or not 1 <= splits <= len(probabilities):
        raise ValueError(
            f"Inception Score: the probabilities are {tuple(probabilities.shape)} for {splits} parts; give (n, "
            "classes) with at least one sample per part"
        )
    p = probabilities.double()
    surprise = torch.xlogy(p, p).sum(1)
    edges = [i * len(p) // splits for i in range(splits + 1)]
    scores = []
    for low, high in pairwise(edges):
        mean = p[low:high].mean(0)
        scores.append((surprise[low:high].mean() - torch.xlogy(mean, mean).sum()).exp())
    return torch.stack(scores).mean().item()
