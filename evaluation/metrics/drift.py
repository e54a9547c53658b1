"""Drift of each frame of a video from its first frame: colours, and the classes of the judge.

colour_drift   root mean square of the changes of mean and standard deviation of each channel, pixels in 0..1.
class_drift    total variation distance of the judge's probabilities for colour, shape and background, averaged over
               the three: 0 for the same probabilities, 1 if the judge is certain of other classes.
"""

import torch
from torch import Tensor

from ..judges.judge import LABELS, Judge


@torch.no_grad()
def track(judge: Judge, frames: Tensor) -> dict[str, list[float]]:
    """frames: (f, 3, 64, 64) in 0..1 -> f numbers for each name, the first of which is 0."""
    return {"colour_drift": colour_drift(frames).tolist(), "class_drift": class_drift(judge, frames).tolist()}


def colour_drift(frames: Tensor) -> Tensor:
    """(f, 3, h, w) -> (f,)."""
    pixels = frames.flatten(2)
    moments = torch.cat([pixels.mean(2), pixels.std(2, correction=0)], dim=1)
    return (moments - moments[:1]).square().mean(1).sqrt()


def class_drift(judge: Judge, frames: Tensor) -> Tensor:
    """(f, 3, 64, 64) -> (f,)."""
    logits = judge(frames).logits
    chances = [logits[name].softmax(1) for name in LABELS]
    return torch.stack([(p - p[:1]).abs().sum(1) / 2 for p in chances]).mean(0)
