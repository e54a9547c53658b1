"""Clips as pixels, for models that are trained on pixels: rendered sprites, or a folder of videos."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..plans.errors import ConfigError
from ..plans.vidrd_decoder import DecoderDataTable
from . import sprites, videos


class ClipSource(Protocol):
    """Clips, indexed by number."""

    digest: str

    def __len__(self) -> int: ...

    def frames(self, i: int) -> Tensor:
        """Clip i: (f, 3, size, size) in -1..1."""
        ...


class SpriteClips:
    """Clips first..first+count-1 of `sprites`, rendered on access."""

    def __init__(self, count: int, frames: int, size: int, *, first: int = 0) -> None:
        self.count, self.size, self.first = count, size, first
        self.times = sprites.frame_times(frames)
        self.digest = f"drawn/{first}/{count}/{size}"

    def __len__(self) -> int:
        return self.count

    def frames(self, i: int) -> Tensor:
        return sprites.render(sprites.clip(0, self.first + i), self.times, size=self.size) * 2 - 1


class VideoClips:
    """All complete clips of a folder of videos, decoded on access. Videos that cannot be read are skipped."""

    def __init__(self, folder: Path, frames: int, size: int, fps: float) -> None:
        files = sorted(p for p in folder.glob("*") if p.suffix.lower() in videos.SUFFIXES)
        self._read = lru_cache(maxsize=4)(lambda file: videos.clips(file, frames=frames, fps=fps, size=size))
        self.places = [(file, j) for file in files for j in range(len(self._read(file)))]
        if not self.places:
            raise ConfigError(
                f"data.videos: {folder} has no video of {frames} frames at {fps:g} fps; use longer videos, or lower "
                "data.frames or data.fps"
            )
        content = f"{frames}/{size}/{fps}" + "".join(f"{file.name}/{file.stat().st_size}" for file in files)
        self.digest = hashlib.sha256(content.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.places)

    def frames(self, i: int) -> Tensor:
        file, j = self.places[i]
        return self._read(file)[j]


def of(data: DecoderDataTable) -> ClipSource:
    """The clips that a config selects. Raises ConfigError when there are none."""
    if data.videos:
        return VideoClips(Path(data.videos), data.frames, data.size, data.fps)
    return SpriteClips(data.clips, data.frames, data.size)
