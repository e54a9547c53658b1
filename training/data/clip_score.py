"""How well a clip fits its caption: ART-V keeps the clips of the highest CLIP score (arXiv 2311.18834, section 4).

Which CLIP and which frames the paper does not say: RECONSTRUCTED as the mean cosine of the caption and `frames` evenly
spread frames, by a CLIP of transformers in a folder of one's own.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from ..config import ConfigError

log = logging.getLogger(__name__)
FILES = ("config.json", "model.safetensors", "vocab.json", "merges.txt")
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's CLIP
BLOCK = 1 << 20


class ClipScore:
    """Cosines of captions and frames. ConfigError, in one sentence, when a file of the folder is missing."""

    def __init__(self, folder: Path, frames: int = 4) -> None:
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise ConfigError(
                f"--clip {folder}: {missing[0]} is missing; give a folder of transformers' CLIP: {', '.join(FILES)}"
            )
        self.frames, self.sha256 = frames, sha256(folder / "model.safetensors")
        log.info("CLIP: %s, sha256 %s", folder, self.sha256)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
        self.model.eval().to(device)
        self.tokens = CLIPTokenizer.from_pretrained(str(folder))
        self.mean, self.deviation = _normalisation(folder / "preprocessor_config.json")

    @torch.no_grad()
    def __call__(self, frames: Tensor, caption: str) -> dict[str, float]:
        """frames: (f, 3, h, w) in 0..1 -> the mean cosine, -1..1."""
        places = torch.linspace(0, len(frames) - 1, min(self.frames, len(frames))).round().long()
        longest = self.model.config.text_config.max_position_embeddings
        ids = self.tokens(caption, truncation=True, max_length=longest, return_tensors="pt").input_ids
        pixels = self.pixels(frames[places])
        found = self.model(input_ids=ids.to(self.model.device), pixel_values=pixels.to(self.model.device))
        return {"clip_score": float(F.cosine_similarity(found.image_embeds, found.text_embeds).mean())}

    def pixels(self, frames: Tensor) -> Tensor:
        """What the model sees: the middle square, at its size, with its mean and deviation."""
        size, short = self.model.config.vision_config.image_size, min(frames.shape[-2:])
        top, left = ((n - short) // 2 for n in frames.shape[-2:])
        square = frames[..., top : top + short, left : left + short].float()
        scaled = F.interpolate(square, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, deviation = (scaled.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.deviation))
        return (scaled - mean) / deviation


def best(scores: dict[int, float], count: int) -> frozenset[int]:
    """The clips of the `count` highest scores; of equal ones the earlier."""
    return frozenset(sorted(scores, key=lambda clip: (-scores[clip], clip))[:count])


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _normalisation(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not path.is_file():
        return MEAN, DEVIATION
    told = json.loads(path.read_text(encoding="utf-8"))
    return tuple(told.get("image_mean", MEAN)), tuple(told.get("image_std", DEVIATION))
