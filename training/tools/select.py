"""python -m stillmotion.training select: which clips of a folder a training takes (ART-V, arXiv 2311.18834, section 4).

    select motion CONFIG --latents DIR --out moving.jsonl                      motion score in [1, 20]
    select clip CONFIG --latents DIR --after moving.jsonl --top N --out kept.jsonl    of those the best by CLIP

The trainer takes a list as `data.kept`, the verb `latents --videos` as `--kept`: then only those clips are encoded. A
list belongs to the clips that it was made for, and is refused with others.
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
TOLD_EVERY = 200


@dataclass(frozen=True)
class Shown:
    """A clip as a stage sees it."""

    clip: int
    name: str
    frames: Tensor  # (f, 3, h, w) in 0..1
    caption: str


class Clips(Protocol):
    source: dict[str, Any]

    def __call__(self, wanted: Callable[[int], bool]) -> Iterator[Shown]:
        """The clips of the wanted numbers, in order."""
        ...


class OfLatents:
    """The clips of a folder of latents, decoded by the base that encoded them."""

    def __init__(self, folder: Path, table: BaseTable, tokenizer: Path) -> None:
        self.vae: Any = bases.load(table, tokenizer).vae
        self.cache = latents.read(folder, self.vae)
        self.vae.to("cuda" if torch.cuda.is_available() else "cpu")
        self.source = {"latents": self.cache.digest}

    def __call__(self, wanted: Callable[[int], bool]) -> Iterator[Shown]:
        count = len(self.cache.times)
        device = next(self.vae.parameters()).device
        for i in filter(wanted, range(len(self.cache))):
            frames = decoded(self.vae, self.cache.frames(i, count).unsqueeze(0).to(device), count)[0]
            yield Shown(i, f"clip {i}", frames, self.cache.caption(i, random.Random(i)))


class OfVideos:
    """The clips of a folder of videos, numbered as the verb `latents --videos` does."""

    def __init__(self, folder: Path, *, frames: int, fps: float, size: int) -> None:
        self.files, self.told = videos.listed(folder)
        self.cut = {"frames": frames, "fps": fps, "size": size}
        self.source = videos.source(folder, frames=frames, fps=fps)

    def __call__(self, wanted: Callable[[int], bool]) -> Iterator[Shown]:
        number = 0
        for file, caption in zip(self.files, self.told, strict=True):
            for j, clip in enumerate(videos.clips(file, **self.cut)):
                if wanted(number):
                    yield Shown(number, f"{file.name} {j}", clip / 2 + 0.5, caption)
                number += 1


def begun(clips: Clips, after: Path | None) -> Selection:
    """The list that a stage starts from: that of the stage before, or one that will hold every clip."""
    if after is None:
        return Selection(clips.source, [], [])
    before = selection.load(after)
    selection.check_source(before, clips.source, after)
    return before


def scored(clips: Clips, before: Selection, score: Callable[[Shown], dict[str, float]]) -> list[Row]:
    """The clips that are still kept, with their new scores."""
    known = {row.clip: row for row in before.rows}
    rows = []
    for shown in clips(lambda i: not before.stages or i in before.kept):
        told = known[shown.clip].scores if before.stages else {}
        rows.append(Row(shown.clip, shown.name, True, {**told, **_rounded(score(shown))}))
        if len(rows) % TOLD_EVERY == 0:
            log.info("scored %d clips", len(rows))
    if not rows:
        raise ConfigError("there is no clip to look at: the folder, or the list of the stage before, is empty")
    return rows


def by_motion(clips: Clips, chosen: MotionFilter, out: Path, after: Path | None = None) -> Selection:
    """Write the list of the clips that move as `chosen` says."""
    motion, before = Motion(chosen), begun(clips, after)
    rows = scored(clips, before, lambda shown: motion(shown.frames))
    kept = frozenset(row.clip for row in rows if chosen.keeps(row.scores))
    return _written(before, {"stage": "motion", **asdict(chosen)}, rows, kept, out)


def by_clip(
    clips: Clips, folder: Path, out: Path, *, top: int, frames: int = 4, after: Path | None = None
) -> Selection:
    """Write the list of the `top` clips that fit their captions best."""
    if top < 1 or frames < 1:
        raise ConfigError(f"--top {top} --clip-frames {frames}: at least one clip and one frame")
    score, before = clip_score.ClipScore(folder, frames), begun(clips, after)
    rows = scored(clips, before, lambda shown: score(shown.frames, shown.caption))
    kept = clip_score.best({row.clip: row.scores["clip_score"] for row in rows}, top)
    stage = {"stage": "clip", "top": top, "frames": frames, "model": folder.name, "sha256": score.sha256}
    return _written(before, stage, rows, kept, out)


def _written(before: Selection, stage: dict[str, Any], rows: list[Row], kept: frozenset[int], out: Path) -> Selection:
    judged = [Row(row.clip, row.name, row.clip in kept, row.scores) for row in rows]
    found = before.after(stage, judged) if before.stages else Selection(before.source, [stage], judged)
    found.save(out)
    log.info("%s: %d of %d clips are kept", out, len(kept), len(rows))
    return found


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in scores.items()}
