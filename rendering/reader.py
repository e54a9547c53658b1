"""Frames of a video file, one at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import av
import torch
from av.error import FFmpegError
from torch import Tensor


def frames(source: str | Path | IO[bytes], *, start: float = 0.0, duration: float = 0.0) -> Iterator[Tensor]:
    """RGB (3, h, w) in 0..1 of each frame of the first video stream, in order, with one frame in memory at a time.

    start, duration: seconds from the first frame; duration 0: to the end. ValueError for a file without a video stream
    or without a frame in that time.
    """
    with _open(source) as container:
        if not container.streams.video:
            raise ValueError("video: the file has no video stream; give a video")
        stream, begin, empty = container.streams.video[0], None, True
        for frame in container.decode(stream):
            begin = frame.time if begin is None else begin
            time = (frame.time or 0.0) - (begin or 0.0)
            if time < start - 1e-6:
                continue
            if duration and time >= start + duration - 1e-6:
                break
            empty = False
            yield torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1) / 255
    if empty:
        raise ValueError(
            f"video: there is no frame from {start} s on, because the video is shorter; choose an earlier start"
        )


def _open(source: str | Path | IO[bytes]) -> Any:
    try:
        return av.open(str(source) if isinstance(source, Path) else source)
    except FFmpegError as error:
        raise ValueError(f"video: {source} cannot be read ({error}); give a playable video file") from error
