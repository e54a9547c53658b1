"""How well a clip matches its caption: ART-V keeps the clips with the highest CLIP score (arXiv 2311.18834, section 4).

The paper does not say which CLIP model and which frames it uses. RECONSTRUCTED as the mean cosine similarity of the
caption and `frames` evenly spaced frames, computed by a CLIP model of transformers in a local folder.
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
    """Cosine similarity of captions and frames. Raises ConfigError when a file is missing from the folder."""

    def __init__(self, folder: Path, frames: int = 4) -> None:
        try:
            self.clip = Clip(folder, "cuda" if torch.cuda.is_available() else "cpu")
        except MetricError as error:
            raise ConfigError(str(error)) from error
        self.frames, self.sha256 = frames, self.clip.file.sha256
        log.info("CLIP: %s, sha256 %s", folder, self.sha256)

    def __call__(self, frames: Tensor, caption: str) -> dict[str, float]:
        """frames: (f, 3, h, w) in 0..1 -> the mean cosine similarity, -1..1."""
        places = torch.linspace(0, len(frames) - 1, min(self.frames, len(frames))).round().long()
        return {"clip_score": float(clip_similarity(self.clip.images(frames[places]), self.clip.text(caption)))}


def best(scores: dict[int, float], count: int) -> frozenset[int]:
    """The clips with the `count` highest scores; among equal scores, the earlier clip."""
    return frozenset(sorted(scores, key=lambda clip: (-scores[clip], clip))[:count])
