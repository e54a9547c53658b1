"""python -m stillmotion.training select: selects the clips of a training (ART-V, arXiv 2311.18834, section 4).

    select motion CONFIG --latents DIR --out moving.jsonl                      motion score in [1, 20]
    select clip CONFIG --latents DIR --after moving.jsonl --top N --out best.jsonl    of these, the best by CLIP score

The trainer reads a list as `data.selection`; the verb `latents --videos` reads it as `--selection` and encodes only its
clips. A list belongs to the clips for which it was made, and is refused with others.
"""

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..data import clip_score, latents, selection, videos
from ..data.motion_score import Motion, MotionFilter
from ..data.selection import Row, Selection
from ..plans.common import BaseTable
from ..plans.errors import ConfigError
from ..systems import bases
from ..systems.preview import decoded

log = logging.getLogger(__name__)
LOG_EVERY = 200  # clips


@dataclass(frozen=True)
class NumberedClip:
    """A clip with its number, which a stage scores."""

    clip: int
    name: str
    frames: Tensor  # (f, 3, h, w) in 0..1
    caption: str


class Clips(Protocol):
    """Clips of a folder; `source` identifies them."""

    source: dict[str, Any]

    def __call__(self, include: Callable[[int], bool]) -> Iterator[NumberedClip]:
        """The clips whose numbers are included, in order."""
        ...


class OfLatents:
    """The clips of a folder of latents, decoded with the base that encoded them."""

    def __init__(self, folder: Path, table: BaseTable, tokenizer: Path) -> None:
        self.vae: Any = bases.load(table, tokenizer).vae
        self.cache = latents.read(folder, self.vae)
        self.vae.to("cuda" if torch.cuda.is_available() else "cpu")
        self.source = {"latents": self.cache.digest}

    def __call__(self, include: Callable[[int], bool]) -> Iterator[NumberedClip]:
        count = len(self.cache.times)
        device = next(self.vae.parameters()).device
        for i in filter(include, range(len(self.cache))):
            frames = decoded(self.vae, self.cache.frames(i, count).unsqueeze(0).to(device), count)[0]
            yield NumberedClip(i, f"clip {i}", frames, self.cache.caption(i, random.Random(i)))


class OfVideos:
    """The clips of a folder of videos, numbered as by the verb `latents --videos`."""

    def __init__(self, folder: Path, *, frames: int, fps: float, size: int) -> None:
        self.files, self.captions = videos.files_and_captions(folder)
        self.settings = {"frames": frames, "fps": fps, "size": size}
        self.source = videos.source(folder, frames=frames, fps=fps)

    def __call__(self, include: Callable[[int], bool]) -> Iterator[NumberedClip]:
        number = 0
        for file, caption in zip(self.files, self.captions, strict=True):
            for j, clip in enumerate(videos.clips(file, **self.settings)):
                if include(number):
                    yield NumberedClip(number, f"{file.name} {j}", clip / 2 + 0.5, caption)
                number += 1


def previous_list(clips: Clips, after: Path | None) -> Selection:
    """The list of the previous stage, or an empty list for the first stage."""
    if after is None:
        return Selection(clips.source, [], [])
    previous = selection.load(after)
    selection.check_source(previous, clips.source, after)
    return previous


def score_clips(clips: Clips, previous: Selection, score: Callable[[NumberedClip], dict[str, float]]) -> list[Row]:
    """Rows of the clips that are still kept, with their new scores."""
    old_rows = {row.clip: row for row in previous.rows}
    rows = []
    for clip in clips(lambda i: not previous.stages or i in previous.kept):
        old_scores = old_rows[clip.clip].scores if previous.stages else {}
        rows.append(Row(clip.clip, clip.name, True, {**old_scores, **_rounded(score(clip))}))
        if len(rows) % LOG_EVERY == 0:
            log.info("scored %d clips", len(rows))
    if not rows:
        raise ConfigError("there are no clips to score: the folder, or the list of the previous stage, is empty")
    return rows


def by_motion(clips: Clips, settings: MotionFilter, out: Path, after: Path | None = None) -> Selection:
    """Write the list of the clips that pass a motion filter."""
    motion, previous = Motion(settings), previous_list(clips, after)
    rows = score_clips(clips, previous, lambda clip: motion(clip.frames))
    kept_clips = frozenset(row.clip for row in rows if settings.keeps(row.scores))
    return _write(previous, {"stage": "motion", **asdict(settings)}, rows, kept_clips, out)


def by_clip(
    clips: Clips, folder: Path, out: Path, *, top: int, frames: int = 4, after: Path | None = None
) -> Selection:
    """Write the list of the `top` clips that match their captions best."""
    if top < 1 or frames < 1:
        raise ConfigError(f"--top {top} --clip-frames {frames}: give at least one clip and one frame")
    score, previous = clip_score.ClipScore(folder, frames), previous_list(clips, after)
    rows = score_clips(clips, previous, lambda clip: score(clip.frames, clip.caption))
    kept_clips = clip_score.best({row.clip: row.scores["clip_score"] for row in rows}, top)
    stage = {"stage": "clip", "top": top, "frames": frames, "model": folder.name, "sha256": score.sha256}
    return _write(previous, stage, rows, kept_clips, out)


def _write(
    previous: Selection, stage: dict[str, Any], rows: list[Row], kept_clips: frozenset[int], out: Path
) -> Selection:
    new_rows = [Row(row.clip, row.name, row.clip in kept_clips, row.scores) for row in rows]
    result = previous.after(stage, new_rows) if previous.stages else Selection(previous.source, [stage], new_rows)
    result.save(out)
    log.info("wrote %s: %d of %d clips are kept", out, len(kept_clips), len(rows))
    return result


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in scores.items()}
