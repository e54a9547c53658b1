"""The pocket metrics of the verb `eval`: bundled judges, labels from captions, and rendered clips as reference."""

import logging
import time
from collections.abc import Callable, Iterator
from functools import cache

from ...evaluation.judges.video_judge import FRAMES
from ...evaluation.metrics import pocket_metrics
from ...evaluation.metrics.video_metrics import Metric, VideoSample
from ..data.worlds import named
from . import judging
from .watching import VideoPass

log = logging.getLogger(__name__)
LOG_EVERY = 100  # clips
KINDS = {
    "pocket_fvd": pocket_metrics.PocketFvd,
    "pocket_is": pocket_metrics.PocketInceptionScore,
    "pocket_clipsim": pocket_metrics.PocketClipSim,
    "pocket_fff_clip": pocket_metrics.PocketFirstFrameClip,
    "pocket_fff_ssim": pocket_metrics.PocketFirstFrameSsim,
}
NAMES = tuple(KINDS)
RENDERED = judging.REFERENCE  # number of rendered clips if no --reference is given


def makers(*, few: bool) -> dict[str, Callable[[], Metric]]:
    return {
        "pocket_fvd": lambda: pocket_metrics.PocketFvd(_video_judge(), few=few),
        "pocket_is": lambda: pocket_metrics.PocketInceptionScore(_video_judge()),
        "pocket_clipsim": lambda: pocket_metrics.PocketClipSim(_judge(), labels_of),
        "pocket_fff_clip": lambda: pocket_metrics.PocketFirstFrameClip(_judge()),
        "pocket_fff_ssim": pocket_metrics.PocketFirstFrameSsim,
    }


def labels_of(caption: str) -> dict[str, int]:
    """The first colour, shape and background that a caption names, as indices of the judge's labels.

    >>> labels_of("a small red star at night next to a blue ring") == {"colour": 0, "shape": 3, "background": 3}
    True
    """
    text = f" {' '.join(caption.lower().replace(',', ' ').split())} "
    labels = named(_judge().world).phrases()
    places = {name: [(text.find(f" {phrase} "), i) for phrase, i in phrases] for name, phrases in labels.items()}
    matches = {name: [(place, i) for place, i in pairs if place >= 0] for name, pairs in places.items()}
    return {name: min(pairs)[1] for name, pairs in matches.items() if pairs}


def rendered(metrics: dict[str, Metric], count: int = RENDERED) -> VideoPass:
    """The rows of rendered held-out clips, which are the reference if no folder is given."""
    video_pass, start_time = VideoPass({name: [] for name in metrics}), time.monotonic()
    for i, sample in enumerate(_samples(count), 1):
        video_pass.names.append(sample.name)
        if i % LOG_EVERY == 0:
            log.info(
                "rendered reference %d/%d  ETA %.0f s", i, count, (time.monotonic() - start_time) / i * (count - i)
            )
        for name, metric in metrics.items():
            video_pass.rows[name].append(metric.rows([sample]))
    return video_pass


def _samples(count: int) -> Iterator[VideoSample]:
    world = named(_video_judge().world)
    prompts = world.held_out(count)
    for prompt, clip in zip(prompts, judging.rendered(prompts, FRAMES, world), strict=True):
        yield VideoSample(world.caption(prompt), (clip * 255).round().byte())


_judge, _video_judge = cache(judging.bundled_judge), cache(judging.bundled_video_judge)
