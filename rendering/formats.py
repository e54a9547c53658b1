"""File formats, and checks of a format before anything is sampled."""

from dataclasses import dataclass, field

import av
import numpy as np
from av.codec import Codec
from av.codec.codec import UnknownCodecError

from .errors import CodecError, SizeError


@dataclass(frozen=True, kw_only=True)
class Format:
    """codec: of the segments. pictures: PIL's name of the image format in which frames are also written, if any."""

    codec: str
    container: str
    suffix: str
    pixels: str
    options: dict[str, str] = field(default_factory=dict)
    even: bool = False  # width and height must be even, because colour is stored at half the size
    pictures: str = ""


# One thread, so that the same frames give the same bytes on every machine. No B-frames, so that packets are in the
# order of the frames and segments can be concatenated.
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
    """The format. SizeError for odd sizes that the codec does not support, CodecError if PyAV lacks the codec."""
    kind = FORMATS[name]
    if kind.even and (width % 2 or height % 2):
        raise SizeError(
            f"render: H.264 needs an even width and height, but the video would have {width} x {height} pixels; use "
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


def repeat_pixels(frames: np.ndarray, times: int) -> np.ndarray:
    """Repeat every pixel `times` x `times`: (k, h, w, 3) -> (k, times h, times w, 3)."""
    return frames if times == 1 else frames.repeat(times, axis=1).repeat(times, axis=2)
