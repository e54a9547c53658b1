"""One video file per clip, and one video of all clips without encoding anything twice.

Every segment starts with a key frame and is self-contained, so the video consists of the packets of the segments, one
after another, with new time stamps. Frames are uint8 RGB, (n, h, w, 3); only those of one call are in memory.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream
from PIL import Image

from ..model_patches.files import replacing
from .errors import CodecError, storage
from .formats import Format

BT709 = 1  # the number of matrix, primaries and transfer function
LIMITED = 1  # luma from 16 to 235


@contextmanager
def segment_writer(path: Path, kind: Format, fps: Fraction) -> Iterator["SegmentWriter"]:
    """Write frames in parts to a file, which gets its name when it is complete. DiskFullError, NotWritableError."""
    with storage(path), replacing(path) as partial, _open(partial, kind) as container:
        writer = SegmentWriter(container, kind, fps)
        yield writer
        writer.finish()


class SegmentWriter:
    def __init__(self, container: Any, kind: Format, fps: Fraction) -> None:
        self.container, self.kind, self.fps = container, kind, fps
        self.stream: VideoStream | None = None
        self.count = 0

    def write(self, frames: np.ndarray) -> None:
        if self.stream is None:
            self.stream = self._begin(frames.shape[2], frames.shape[1])
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if self.kind.even:
                frame = frame.reformat(format=self.kind.pixels, dst_colorspace=Colorspace.ITU709)
            else:
                frame = frame.reformat(format=self.kind.pixels)
            frame.pts, self.count = self.count, self.count + 1
            frame.time_base = 1 / self.fps
            self.container.mux(self.stream.encode(frame))

    def finish(self) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode())

    def _begin(self, width: int, height: int) -> VideoStream:
        stream = self.container.add_stream(self.kind.codec, rate=self.fps, options=dict(self.kind.options))
        stream.width, stream.height, stream.pix_fmt = width, height, self.kind.pixels
        stream.codec_context.thread_count = 1
        if self.kind.even:
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED
        return stream


class JoinedVideo:
    """A video file to which whole segments are added, one after another."""

    def __init__(self, path: Path, kind: Format, fps: Fraction, *, live: bool, metadata: Mapping[str, Any]) -> None:
        """live: the file can be played at any time, but seeking is slow."""
        flags = "use_metadata_tags"
        if kind.container == "mp4":
            flags += "+empty_moov+default_base_moof+frag_every_frame" if live else "+faststart"
        options = {"movflags": flags} if kind.container == "mp4" else {}
        self.container = _open(path, kind, options | ({"flush_packets": "1"} if live else {}))
        for key, value in metadata.items():
            self.container.metadata[key] = value if isinstance(value, str) else json.dumps(value)
        self.fps, self.count = fps, 0
        self.stream: Any = None
        self.header: bytes | None = None

    def add(self, segment: Path) -> None:
        """CodecError when the segment was encoded with other settings than the first."""
        with av.open(str(segment)) as source:
            stream = source.streams.video[0]
            header = stream.codec_context.extradata
            if self.stream is None:
                self.stream, self.header = self.container.add_stream_from_template(stream), header
            elif header != self.header:
                raise CodecError(
                    f"render: {segment} was encoded with other settings than the previous segments; delete it and "
                    "queue again to encode it again"
                )
            for packet in source.demux(stream):
                if packet.size:
                    self._mux(packet)

    def _mux(self, packet: Any) -> None:
        packet.stream = self.stream
        packet.time_base = 1 / self.fps
        packet.pts = packet.dts = self.count
        packet.duration = 1
        self.container.mux(packet)
        self.count += 1

    def close(self) -> None:
        self.container.close()


def _open(path: Path, kind: Format, options: Mapping[str, str] | None = None) -> Any:
    """bitexact: the file contains no random numbers or dates, so the same frames give the same file."""
    return av.open(str(path), "w", format=kind.container, options={"fflags": "+bitexact", **(options or {})})


def join(
    segments: Iterable[Path], path: Path, kind: Format, fps: Fraction, metadata: Mapping[str, Any] | None = None
) -> int:
    """Join all segments into the video, with the index at its beginning; returns the number of frames."""
    with storage(path), replacing(path) as partial:
        # faststart opens the file a second time by its name
        video = JoinedVideo(partial, kind, fps, live=False, metadata=metadata or {})
        try:
            for segment in segments:
                video.add(segment)
        finally:
            video.close()
    return video.count


def write_pictures(frames: np.ndarray, folder: Path, first: int, kind: Format) -> list[Path]:
    """Write lossless images, numbered from 1; `first` frames of the video precede these."""
    paths = []
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(frames, first + 1):
            path = folder / f"{i:06}.{kind.pictures}"
            with replacing(path) as partial:
                Image.fromarray(picture).save(partial, format=kind.pictures, lossless=True)
            paths.append(path)
    return paths
