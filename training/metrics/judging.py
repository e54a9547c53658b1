"""The pocket's clips before its judges, from prompts and frames to scores; the ablation and the benchmarks call it."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...evaluation.judges.judge import Judge, load_judge
from ...evaluation.judges.video_judge import FRAMES, VideoJudge, clip_features, load_video_judge
from ...evaluation.scores.clips import read_clip
from ...evaluation.scores.score import Sample, Wanted
from ...evaluation.scores.statistics import moments
from ..data import sprites
from ..plans.common import POCKET

REFERENCE = 1000  # rendered clips that stand for the real ones


def bundled_judge() -> Judge:
    return load_judge(POCKET / "judge.safetensors")


def bundled_video_judge() -> VideoJudge:
    return load_video_judge(POCKET / "video_judge.safetensors")[0]


def wanted(clip: sprites.Clip) -> Wanted:
    return Wanted(
        colour=list(sprites.COLOURS).index(clip.sprite.colour),
        shape=sprites.SHAPES.index(clip.sprite.shape),
        background=list(sprites.BACKGROUNDS).index(clip.background),
        motion=clip.motion,
    )


def sample(
    frames: Iterable[Tensor],  # of each clip (f, 3, 64, 64) in 0..1; may be a generator: one clip is held at a time
    prompts: Sequence[sprites.Clip],
    judge: Judge,
    video_judge: VideoJudge | None = None,
) -> Sample:
    """What the judges see in the clips that were made for `prompts` in order: for `evaluation.scores.score.score`."""
    readings, features = [], []
    for clip in frames:
        readings.append(read_clip(judge, clip))
        if video_judge is not None:
            features.append(clip_features(video_judge, [clip])[0])
    return Sample(readings, [wanted(p) for p in prompts], torch.stack(features) if features else None)


def rendered(prompts: Iterable[sprites.Clip], frames: int = FRAMES) -> Iterable[Tensor]:
    """The truth: each prompt drawn as it is meant."""
    return (sprites.render(p, sprites.frame_times(frames)) for p in prompts)


def reference(
    video_judge: VideoJudge, *, motions: tuple[str, ...], after: int, count: int = REFERENCE
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the features of real clips: held-out prompts of these motions, behind the first `after`.

    Nothing of the reference is among the `after` prompts that are scored, and its motions are as frequent as theirs.
    """
    return moments(clip_features(video_judge, rendered(sprites.held_out(count, motions=motions, first=after))))
