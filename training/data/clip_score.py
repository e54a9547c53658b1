"""How well a clip fits its caption: ART-V keeps the clips of the highest CLIP score (arXiv 2311.18834, section 4).

Which CLIP and which frames the paper does not say: RECONSTRUCTED as the mean cosine of the caption and `frames` evenly
spread frames, by a CLIP of transformers in a folder of one's own.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor

from ...evaluation.networks.clip_similarity import Clip, clip_similarity
from ...evaluation.networks.loading import MetricError
from ..plans.errors import ConfigError

log = logging.getLogger(__name__)


class ClipScore:
    """Cosines of captions and frames. ConfigError, in one sentence, when a file of the folder is missing."""

    def __init__(self, folder: Path, frames: int = 4) -> None:
        try:
            self.clip = Clip(folder, "cuda" if torch.cuda.is_available() else "cpu")
        except MetricError as error:
            raise ConfigError(str(error)) from error
        self.frames, self.sha256 = frames, self.clip.file.sha256
        log.info("CLIP: %s, sha256 %s", folder, self.sha256)

    def __call__(self, frames: Tensor, caption: str) -> dict[str, float]:
        """frames: (f, 3, h, w) in 0..1 -> the mean cosine, -1..1."""
        places = torch.linspace(0, len(frames) - 1, min(self.frames, len(frames))).round().long()
        return {"clip_score": float(clip_similarity(self.clip.images(frames[places]), self.clip.text(caption)))}


def best(scores: dict[int, float], count: int) -> frozenset[int]:
    """The clips of the `count` highest scores; of equal ones the earlier."""
    return frozenset(sorted(scores, key=lambda clip: (-scores[clip], clip))[:count])
