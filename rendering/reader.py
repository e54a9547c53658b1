"""Frames of a video file, one at a time."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import av
import av.filter
import numpy as np
import torch
from av.error import FFmpegError
from torch import Tensor

EIGHT_BIT = ("rgb24", "bgr24", "rgb0", "bgr0", "rgba", "bgra", "gbrp", "pal8", "yuvj420p", "yuvj422p", "yuvj444p")
ALIGNED = 32  # pixels


def frames(source: str | Path | IO[bytes], *, start: float = 0.0, duration: float = 0.0) -> Iterator[Tensor]:
    """RGB (3, h, w) in 0..1 of each frame of the first video stream, in order, with one frame in memory at a time.

    Frames are as ComfyUI's own nodes get them: turned as the file says (phones store upright videos lying down), in the
    precision of the file (10 bit), without alpha, and every frame once, at whatever rate.
    start, duration: seconds in the time of the file; duration 0: to the end. ValueError for a file without a video
    stream or without a frame in that time.
    """
    with _open(source) as container:
        if not container.streams.video:
            raise ValueError("video: the file has no video stream; give a video")
        stream, empty, pictures = container.streams.video[0], True, Pictures()
        for frame in _decoded(container, stream, source):
            time = frame.time or 0.0
            if time < start - 1e-6:
                continue
            if duration and time >= start + duration - 1e-6:
                break
            empty = False
            yield pictures.of(frame)
    if empty:
        raise ValueError(
            f"video: there is no frame from {start} s on, because the video is shorter; choose an earlier start"
        )


def _decoded(container: Any, stream: Any, source: str | Path | IO[bytes]) -> Iterator[av.VideoFrame]:
    """The frames of a stream. ValueError where the file is damaged, or FFmpeg lacks its codec."""
    try:
        yield from container.decode(stream)
    except FFmpegError as error:
        raise ValueError(
            f"video: {source} cannot be decoded to its end ({error}); give a whole video file, or convert it to H.264"
        ) from error


class Pictures:
    """Converts decoded frames to RGB. Frames whose width is no multiple of 32 are padded first, because FFmpeg's
    conversion to floats otherwise reads beyond the last pixels, and its results differ from run to run."""

    def __init__(self) -> None:
        self.padding: dict[tuple[int, int, str], Any] = {}

    def of(self, frame: av.VideoFrame) -> Tensor:
        """(3, h, w) in 0..1, upright."""
        exact = frame.format.name in EIGHT_BIT
        padded = frame if exact or frame.width % ALIGNED == 0 else self._padded(frame)
        pixels = padded.to_ndarray(format="rgb24" if exact else "gbrpf32le")[: frame.height, : frame.width]
        pixels = np.rot90(pixels, round(frame.rotation / 90) % 4)
        picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        return picture / 255 if exact else picture

    def _padded(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame with its last column and row repeated up to a multiple of 32."""
        key = (frame.width, frame.height, frame.format.name)
        if key not in self.padding:
            graph = av.filter.Graph()
            width, height = (-(-side // ALIGNED) * ALIGNED for side in key[:2])
            source = graph.add_buffer(width=key[0], height=key[1], format=frame.format, time_base=Fraction(1, 1000))
            pad = graph.add("pad", f"{width}:{height}:0:0")
            fill = graph.add("fillborders", f"right={width - key[0]}:bottom={height - key[1]}:mode=smear")
            sink = graph.add("buffersink")
            for first, second in pairwise((source, pad, fill, sink)):
                first.link_to(second)
            graph.configure()
            self.padding[key] = graph, source, sink
        _, source, sink = self.padding[key]
        source.push(frame)
        return sink.pull()


def _open(source: str | Path | IO[bytes]) -> Any:
    try:
        return av.open(str(source) if isinstance(source, Path) else source)
    except FFmpegError as error:
        raise ValueError(f"video: {source} cannot be read ({error}); give a playable video file") from error
