"""Runs the pocket's judges on clips, for the scores of the ablations and the benchmarks."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...evaluation.judges.judge import LABELS, Judge, load_judge
from ...evaluation.judges.video_judge import FRAMES, VideoJudge, clip_features, load_video_judge
from ...evaluation.scores.clips import read_clip
from ...evaluation.scores.score import PromptLabels, Sample
from ...evaluation.scores.statistics import moments
from ..data.sprites import frame_times
from ..data.worlds import SPRITES, World, named
from ..plans.common import POCKET

REFERENCE = 1000  # number of rendered clips that serve as real clips


def bundled_judge() -> Judge:
    return load_judge(POCKET / "judge.safetensors")


def bundled_video_judge() -> VideoJudge:
    return load_video_judge(POCKET / "video_judge.safetensors")[0]


def prompt_labels(clip: Any, world: World = SPRITES) -> PromptLabels:
    values = world.attributes(clip)
    numbers = {name: world.CLASSES[name].index(values[name]) for name in LABELS}
    return PromptLabels(**numbers, motion=clip.motion)


def sample(
    frames: Iterable[Tensor],  # clips (f, 3, 64, 64) in 0..1; may be a generator, one clip is in memory at a time
    prompts: Sequence[Any],  # clips of the judge's world
    judge: Judge,
    video_judge: VideoJudge | None = None,
) -> Sample:
    """The judges' readings of the clips of `prompts`, in the same order, for `evaluation.scores.score.score`."""
    world = named(judge.world)
    readings, features = [], []
    for clip in frames:
        readings.append(read_clip(judge, clip))
        if video_judge is not None:
            features.append(clip_features(video_judge, [clip])[0])
    return Sample(readings, [prompt_labels(p, world) for p in prompts], torch.stack(features) if features else None)


def rendered(prompts: Iterable[Any], frames: int = FRAMES, world: World = SPRITES) -> Iterable[Tensor]:
    """The ground truth: the rendered clip of each prompt."""
    return (world.render(p, frame_times(frames)) for p in prompts)


def reference(
    video_judge: VideoJudge, *, motions: tuple[str, ...], after: int, count: int = REFERENCE
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the features of real clips: rendered held-out prompts, from number `after` on.

    The reference contains none of the first `after` prompts, which are scored, and the motions are equally frequent.
    """
    world = named(video_judge.world)
    prompts = world.held_out(count, motions=motions, first=after)
    return moments(clip_features(video_judge, rendered(prompts, world=world)))
