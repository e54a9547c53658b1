"""Training of the video judge: rendered clips, played forwards, backwards and with their frames shuffled."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...evaluation.judges.video_judge import FRAMES, VideoJudge
from ..data import sprites
from ..engine.loop import sample_generator
from ..engine.task import Task

SEED = 78_000  # a seed of its own, as for the image judge
HELD_OUT_SEED = 78_500
IGNORED = -100  # ignore_index of cross_entropy
ORDERED, DISORDERED = 0, 1
BACKWARDS = {"right": "left", "left": "right", "up": "down", "down": "up"}


def labels_of(clip: sprites.Clip, *, order: int, backwards: bool = False) -> dict[str, int]:
    """The labels of a clip. Shuffled frames have no motion and no speed; a sprite at rest has no speed and no order."""
    motion = BACKWARDS.get(clip.motion, clip.motion) if backwards else clip.motion
    still = clip.motion == "still"
    return {
        "motion": IGNORED if order == DISORDERED and not still else list(sprites.MOTIONS).index(motion),
        "speed": IGNORED if order == DISORDERED or still else list(sprites.SPEEDS).index(clip.speed),
        "order": IGNORED if still else order,
        "colour": list(sprites.COLOURS).index(clip.sprite.colour),
        "shape": sprites.SHAPES.index(clip.sprite.shape),
        "background": list(sprites.BACKGROUNDS).index(clip.background),
        "size": list(sprites.SIZES).index(clip.size),
    }


class VideoJudgeTask(Task):
    """Each sample is one rendered clip, used twice: in order (half of the clips backwards), and shuffled."""

    def __init__(self, seed: int = SEED) -> None:
        super().__init__()
        self.judge, self.seed = VideoJudge(), seed

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
        clip, g = sprites.clip(self.seed, k), sample_generator(self.seed, k)
        frames = degrade(sprites.render(clip, sprites.frame_times(FRAMES)), g)
        backwards = bool(torch.rand((), generator=g) < 0.5)
        shuffled = frames[torch.randperm(FRAMES, generator=g)]
        return [
            (frames.flip(0) if backwards else frames, labels_of(clip, order=ORDERED, backwards=backwards)),
            (shuffled, labels_of(clip, order=DISORDERED)),
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
    hits: dict[str, list[bool]] = {}
    for k in range(clips):
        clip = sprites.clip(seed, k, held_out=True)
        frames, g = sprites.render(clip, sprites.frame_times(FRAMES)), sample_generator(seed, k)
        for order, sequence in ((ORDERED, frames), (DISORDERED, frames[torch.randperm(FRAMES, generator=g)])):
            logits = judge(sequence.unsqueeze(0))
            for name, label in labels_of(clip, order=order).items():
                if label != IGNORED and (order == ORDERED or name == "order"):
                    hits.setdefault(name, []).append(logits[name].argmax().item() == label)
    return {name: round(sum(values) / len(values), 4) for name, values in hits.items()}
