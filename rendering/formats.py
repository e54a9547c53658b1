"""Kinds of files, and what can be said against one before anything is sampled."""

from dataclasses import dataclass, field

import av
import numpy as np
from av.codec import Codec
from av.codec.codec import UnknownCodecError

from .errors import CodecError, SizeError


@dataclass(frozen=True, kw_only=True)
class Format:
    """codec: of the segments. pictures: PIL's name of the format in which frames are written, too."""

    codec: str
    container: str
    suffix: str
    pixels: str
    options: dict[str, str] = field(default_factory=dict)
    even: bool = False  # colour has half the size of brightness
    pictures: str = ""


# One thread, so that the same frames give the same bytes on every machine. No B-frames: packets are in the order of the
# frames, so segments can be put behind each other as they are.
H264 = Format(
    codec="libx264",
    container="mp4",
    suffix=".mp4",
    pixels="yuv420p",
    options={"crf": "17", "preset": "medium", "bf": "0", "flags": "+cgop", "threads": "1"},
    even=True,
)
LOSSLESS = {"level": "3", "g": "1", "slicecrc": "1", "threads": "1"}
FFV1 = Format(codec="ffv1", container="matroska", suffix=".mkv", pixels="bgr0", options=LOSSLESS)
FORMATS = {
    "h264-mp4": H264,
    "ffv1-mkv": FFV1,
    "png": Format(codec="ffv1", container="matroska", suffix=".mkv", pixels="bgr0", options=LOSSLESS, pictures="png"),
    "webp": Format(codec="ffv1", container="matroska", suffix=".mkv", pixels="bgr0", options=LOSSLESS, pictures="webp"),
}


def check_format(name: str, width: int, height: int) -> Format:
    """SizeError for odd sizes that the codec cannot take, CodecError when PyAV comes without it."""
    kind = FORMATS[name]
    if kind.even and (width % 2 or height % 2):
        raise SizeError(
            f"render: H.264 needs even sizes, the video would be {width} x {height} pixels; use "
            f"{width + width % 2} x {height + height % 2}, or the format ffv1-mkv"
        )
    try:
        Codec(kind.codec, "w")
    except UnknownCodecError as error:
        other = "h264-mp4" if kind.codec == "ffv1" else "ffv1-mkv"
        raise CodecError(
            f"render: this PyAV ({av.__version__}) has no encoder {kind.codec}, which {name} needs; choose {other},"
            " or install PyAV from PyPI"
        ) from error
    return kind


def enlarged(frames: np.ndarray, times: int) -> np.ndarray:
    """Every pixel as `times` x `times` of them: (k, h, w, 3) -> (k, times h, times w, 3)."""
    return frames if times == 1 else frames.repeat(times, axis=1).repeat(times, axis=2)
