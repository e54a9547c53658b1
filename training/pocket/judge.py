"""Training of the judge: rendered frames with slight blur, noise and tint, so that they resemble decoded images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...evaluation.judges.judge import LABELS, Judge
from ..data import sprites
from ..engine.loop import sample_generator
from ..engine.task import Task

SEED = 77_000  # a seed of its own, so that the judge shares no clip with the models that it judges


def label_indices(clip: sprites.Clip) -> tuple[int, int, int]:
    return (
        list(sprites.COLOURS).index(clip.sprite.colour),
        sprites.SHAPES.index(clip.sprite.shape),
        list(sprites.BACKGROUNDS).index(clip.background),
    )


def new_judge() -> Judge:
    return Judge(len(sprites.COLOURS), len(sprites.SHAPES), len(sprites.BACKGROUNDS))


def truth(clip: sprites.Clip, t: float, *, cue: bool = True) -> tuple[Tensor, Tensor]:
    """One rendered frame (3, 64, 64) and the mask of its sprite at half resolution (1, 32, 32)."""
    return sprites.render(clip, [t], cue=cue)[0], F.avg_pool2d(sprites.sprite_mask(clip, [t]), 2)[0]


class JudgeTask(Task):
    def __init__(self, seed: int = SEED) -> None:
        super().__init__()
        self.judge, self.seed = new_judge(), seed

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        device = next(self.judge.parameters()).device
        clips = [sprites.clip(self.seed, k) for k in samples]
        pairs = [
            truth(c, torch.rand((), generator=sample_generator(self.seed, k)).item())
            for k, c in zip(samples, clips, strict=True)
        ]
        images = torch.stack(
            [_degrade(x, sample_generator(self.seed, k, 1)) for k, (x, _) in zip(samples, pairs, strict=True)]
        )
        labels = torch.tensor([label_indices(c) for c in clips], device=device)
        verdict = self.judge(images.to(device))
        losses = [F.cross_entropy(verdict.logits[name], labels[:, i]) for i, name in enumerate(LABELS)]
        mask = F.binary_cross_entropy_with_logits(verdict.mask, torch.stack([m for _, m in pairs]).to(device))
        return {"loss": sum(losses, 4 * mask), "shape": losses[1].detach(), "mask": mask.detach()}


def _degrade(image: Tensor, g: torch.Generator) -> Tensor:
    """Add blur (to half of the images), noise up to 5 % and a tint of 2 %."""
    if torch.rand((), generator=g) < 0.5:
        image = F.avg_pool2d(F.pad(image.unsqueeze(0), (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
    noise = torch.randn(image.shape, generator=g) * 0.05 * torch.rand((), generator=g)
    return (image + noise + torch.randn(3, 1, 1, generator=g) * 0.02).clamp(0, 1)
