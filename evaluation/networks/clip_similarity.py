"""CLIPSIM and FFF-CLIP: cosine similarities of CLIP embeddings (Radford et al., arXiv 2103.00020), with a local CLIP.

CLIPSIM: mean over a video's frames of the cosine similarity of frame and caption (Wu et al., arXiv 2104.14806).
FFF-CLIP: cosine similarity of the first frame and the image from which the video was generated (DreamVideo, arXiv
2312.03018, section 5). Both are from -1 to 1; DreamVideo prints CLIPSIM times 100. Shapes: f frames, RGB in 0..1.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .loading import MetricError, NetworkFile, sha256

OPTION = "--clip"
FILES = ("config.json", "model.safetensors", "vocab.json", "merges.txt")
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's CLIP
CHUNK = 64  # frames per batch


class Clip:
    """A transformers CLIP in a folder. MetricError, in one sentence, when a file is missing."""

    def __init__(self, folder: Path | None, device: str = "cpu") -> None:
        hint = f"give a folder with a transformers CLIP: {', '.join(FILES)}"
        if folder is None:
            raise MetricError(f"{OPTION} is missing; {hint}")
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise MetricError(f"{OPTION} {folder}: {missing[0]} is missing; {hint}")
        from transformers import CLIPModel, CLIPTokenizer  # imported late, because the nodes import this package

        try:
            self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
            self.tokens = CLIPTokenizer.from_pretrained(str(folder))
        except Exception as error:  # transformers raises various errors for broken files
            raise MetricError(f"{OPTION} {folder} is not a readable CLIP ({error}); {hint}") from error
        self.model.eval().requires_grad_(False).to(device)
        self.mean, self.deviation = _normalisation(folder / "preprocessor_config.json")
        weights = folder / "model.safetensors"
        self.file = NetworkFile(str(weights), sha256(weights), "transformers")

    @property
    def size(self) -> int:
        return self.model.config.vision_config.image_size

    def pixels(self, frames: Tensor) -> Tensor:
        """The model's input for (f, 3, h, w): the middle square, resized (bicubic) and normalised."""
        short = min(frames.shape[-2:])
        top, left = ((n - short) // 2 for n in frames.shape[-2:])
        square = frames[..., top : top + short, left : left + short].float()
        scaled = F.interpolate(square, size=(self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, deviation = (scaled.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.deviation))
        return (scaled - mean) / deviation

    @torch.no_grad()
    def images(self, frames: Tensor) -> Tensor:
        """(f, 3, h, w) -> embeddings of length 1, (f, d)."""
        rows = []
        for part in frames.split(CHUNK):
            output = self.model.vision_model(pixel_values=self.pixels(part).to(self.model.device))
            rows.append(self.model.visual_projection(output.pooler_output).float().cpu())
        return F.normalize(torch.cat(rows), dim=1)

    @torch.no_grad()
    def text(self, caption: str) -> Tensor:
        """Embedding of length 1, (1, d); captions are truncated to the model's 77 tokens."""
        longest = self.model.config.text_config.max_position_embeddings
        ids = self.tokens(caption, truncation=True, max_length=longest, return_tensors="pt").input_ids
        output = self.model.text_model(input_ids=ids.to(self.model.device))
        return F.normalize(self.model.text_projection(output.pooler_output).float().cpu(), dim=1)


def clip_similarity(frames: Tensor, caption: Tensor) -> Tensor:
    """CLIPSIM of one video: embeddings of length 1, (f, d) and (1, d) -> mean cosine similarity, a scalar."""
    return (frames @ caption.T).mean()


def first_frame_similarity(first: Tensor, image: Tensor) -> Tensor:
    """FFF-CLIP: embeddings of length 1, (n, d) each -> cosine similarities (n,)."""
    return (first * image).sum(1)


def _normalisation(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not path.is_file():
        return MEAN, DEVIATION
    config = json.loads(path.read_text(encoding="utf-8"))
    return tuple(config.get("image_mean", MEAN)), tuple(config.get("image_std", DEVIATION))
