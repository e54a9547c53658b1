"""Training of the judge: rendered frames with slight blur, noise and tint, so that they resemble decoded images."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...evaluation.judges.judge import LABELS, Judge
from ..data.worlds import SPRITES, World
from ..engine.loop import sample_generator
from ..engine.task import Task

SEED = 77_000  # a seed of its own, so that the judge shares no clip with the models that it judges


MIN_VISIBLE = 0.5  # visible share of a subject below which its colour and shape do not enter the loss
IGNORED = -100  # label without loss, as in cross_entropy


def label_indices(clip: Any, world: World = SPRITES) -> tuple[int, int, int]:
    """Numbers of the clip's colour, shape and background."""
    values = world.attributes(clip)
    colour, shape, background = (world.CLASSES[name].index(values[name]) for name in LABELS)
    return colour, shape, background


def new_judge(world: World = SPRITES) -> Judge:
    return Judge({name: len(world.CLASSES[name]) for name in LABELS}, world.NAME)


def truth(clip: Any, t: float, world: World = SPRITES) -> tuple[Tensor, Tensor]:
    """One rendered frame (3, 64, 64) and the mask of its subject at half resolution (1, 32, 32)."""
    return world.render(clip, [t])[0], F.avg_pool2d(world.mask(clip, [t]), 2)[0]


class JudgeTask(Task):
    def __init__(self, seed: int = SEED, world: World = SPRITES) -> None:
        super().__init__()
        self.judge, self.seed, self.world = new_judge(world), seed, world

    def identity(self) -> dict[str, str]:
        return {"data.world": self.world.NAME}

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        device = next(self.judge.parameters()).device
        clips = [self.world.clip(self.seed, k) for k in samples]
        times = [torch.rand((), generator=sample_generator(self.seed, k)).item() for k in samples]
        pairs = [truth(c, t, self.world) for c, t in zip(clips, times, strict=True)]
        images = torch.stack(
            [_degrade(x, sample_generator(self.seed, k, 1)) for k, (x, _) in zip(samples, pairs, strict=True)]
        )
        labels = torch.tensor([self._labels(c, t) for c, t in zip(clips, times, strict=True)], device=device)
        verdict = self.judge(images.to(device))
        losses = [
            F.cross_entropy(verdict.logits[name], labels[:, i], ignore_index=IGNORED) for i, name in enumerate(LABELS)
        ]
        mask = F.binary_cross_entropy_with_logits(verdict.mask, torch.stack([m for _, m in pairs]).to(device))
        return {"loss": sum(losses, 4 * mask), "shape": losses[1].detach(), "mask": mask.detach()}

    def _labels(self, clip: Any, t: float) -> tuple[int, int, int]:
        colour, shape, background = label_indices(clip, self.world)
        visible = self.world.visible(clip, [t])[0] >= MIN_VISIBLE
        return (colour, shape, background) if visible else (IGNORED, IGNORED, background)


def _degrade(image: Tensor, g: torch.Generator) -> Tensor:
    """Add blur (to half of the images), noise up to 5 % and a tint of 2 %."""
    if torch.rand((), generator=g) < 0.5:
        image = F.avg_pool2d(F.pad(image.unsqueeze(0), (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
    noise = torch.randn(image.shape, generator=g) * 0.05 * torch.rand((), generator=g)
    return (image + noise + torch.randn(3, 1, 1, generator=g) * 0.02).clamp(0, 1)
