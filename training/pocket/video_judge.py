"""Training of the video judge: rendered clips, played forwards, backwards and with their frames shuffled."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...evaluation.judges.video_judge import FRAMES, VideoJudge
from ..data.sprites import frame_times
from ..data.worlds import SPRITES, World, named
from ..engine.loop import sample_generator
from ..engine.task import Task

SEED = 78_000  # a seed of its own, as for the image judge
HELD_OUT_SEED = 78_500
IGNORED = -100  # ignore_index of cross_entropy
ORDERED, DISORDERED = 0, 1
BACKWARDS = {"right": "left", "left": "right", "up": "down", "down": "up", "nearer": ""}


def sizes_of(world: World) -> dict[str, int]:
    """The number of classes of each label of the judge."""
    first = {"motion": len(world.CLASSES["motion"]), "speed": len(world.CLASSES["speed"]), "order": 2}
    return first | {name: len(values) for name, values in world.CLASSES.items()}


def labels_of(clip: Any, *, order: int, backwards: bool = False, world: World = SPRITES) -> dict[str, int]:
    """The labels of a clip. Shuffled frames have no motion, no speed and no camera; a subject at rest has no speed and
    no order; played backwards, coming nearer is no motion of the world."""
    values = world.attributes(clip)
    motion = BACKWARDS.get(clip.motion, clip.motion) if backwards else clip.motion
    labels = {name: classes.index(values[name]) for name, classes in world.CLASSES.items()}
    labels["motion"] = world.CLASSES["motion"].index(motion) if motion else IGNORED
    labels["order"] = order
    if clip.motion == "still":
        ignored = {"speed", "order"}
    else:
        ignored = {"motion", "speed", "camera"} if order == DISORDERED else set()
    return {name: IGNORED if name in ignored else labels[name] for name in sizes_of(world)}


class VideoJudgeTask(Task):
    """Each sample is one rendered clip, used twice: in order (half of the clips backwards), and shuffled."""

    def __init__(self, seed: int = SEED, world: World = SPRITES) -> None:
        super().__init__()
        self.judge, self.seed, self.world = VideoJudge(sizes_of(world), world.NAME), seed, world

    def identity(self) -> dict[str, str]:
        return {"data.world": self.world.NAME}

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        device = next(self.judge.parameters()).device
        clips, labels = zip(*(pair for k in samples for pair in self.pair(k)), strict=True)
        logits = self.judge(torch.stack(clips).to(device))
        losses = {}
        for name, values in logits.items():
            target = torch.tensor([row[name] for row in labels], device=device)
            count = (target != IGNORED).sum().clamp(min=1)  # a label may be ignored in the whole batch
            losses[name] = F.cross_entropy(values, target, ignore_index=IGNORED, reduction="sum") / count
        total = sum(losses.values(), torch.zeros((), device=device))
        return {"loss": total, **{name: loss.detach() for name, loss in losses.items()}}

    def pair(self, k: int) -> list[tuple[Tensor, dict[str, int]]]:
        clip, g = self.world.clip(self.seed, k), sample_generator(self.seed, k)
        frames = degrade(self.world.render(clip, frame_times(FRAMES)), g)
        backwards = bool(torch.rand((), generator=g) < 0.5)
        shuffled = frames[torch.randperm(FRAMES, generator=g)]
        return [
            (
                frames.flip(0) if backwards else frames,
                labels_of(clip, order=ORDERED, backwards=backwards, world=self.world),
            ),
            (shuffled, labels_of(clip, order=DISORDERED, world=self.world)),
        ]


def degrade(frames: Tensor, g: torch.Generator) -> Tensor:
    """Imitate decoded frames: blur (half of the clips), noise up to 5 %, tint of 2 %, for all frames (f, 3, h, w)."""
    if torch.rand((), generator=g) < 0.5:
        frames = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)
    noise = torch.randn(frames.shape, generator=g) * 0.05 * torch.rand((), generator=g)
    return (frames + noise + torch.randn(3, 1, 1, generator=g) * 0.02).clamp(0, 1)


@torch.no_grad()
def held_out_accuracy(judge: VideoJudge, clips: int = 300, seed: int = HELD_OUT_SEED) -> dict[str, float]:
    """Accuracy by label on rendered clips of held-out combinations; "order" is tested on shuffled frames, too."""
    world = named(judge.world)
    hits: dict[str, list[bool]] = {}
    for k in range(clips):
        clip = world.clip(seed, k, held_out=True)
        frames, g = world.render(clip, frame_times(FRAMES)), sample_generator(seed, k)
        for order, sequence in ((ORDERED, frames), (DISORDERED, frames[torch.randperm(FRAMES, generator=g)])):
            logits = judge(sequence.unsqueeze(0))
            for name, label in labels_of(clip, order=order, world=world).items():
                if label != IGNORED and (order == ORDERED or name == "order"):
                    hits.setdefault(name, []).append(logits[name].argmax().item() == label)
    return {name: round(sum(values) / len(values), 4) for name, values in hits.items()}
