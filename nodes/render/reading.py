"""The frames of ComfyUI's VIDEO inputs, one at a time where the file has the same frames.

A VIDEO is more than its file: a trim, and in newer versions of ComfyUI a crop or a resize, are kept beside it, and
other packs have classes of their own. Only ComfyUI's `get_components` says what the frames are, but it reads all of
them into memory. So a file is read frame by frame if its first frame is the one that ComfyUI gives, and otherwise as a
whole.
"""

from collections.abc import Iterator
from typing import Any

from comfy_api.v0_0_2 import InputImpl

from ...rendering import reader

CLOSE = 1.5 / 255  # largest difference of two conversions of the same frame
PIECES = (0.01, 0.1, 1.0, 10.0)  # seconds of the video that are read to see its first frame


def frames_of(video: Any) -> Iterator[Any]:
    """RGB (3, h, w) in 0..1 of each frame of a VIDEO, in order. ValueError for one without a frame."""
    if _is_its_file(video):
        start, duration = video.get_active_trim_window()
        yield from reader.frames(video.get_stream_source(), start=start, duration=duration)
        return
    images = video.get_components().images
    if not len(images):
        raise ValueError("video: it has no frame; connect a video with frames, or trim less of it")
    yield from (image[..., :3].movedim(-1, 0).float() for image in images)


def _is_its_file(video: Any) -> bool:
    """Whether the frames of a VIDEO are those of its file, within its trim."""
    if type(video) is not InputImpl.VideoFromFile or getattr(video, "has_pending_frame_edits", bool)():
        return False
    start, duration = video.get_active_trim_window()
    first = next(reader.frames(video.get_stream_source(), start=start, duration=duration))
    for seconds in PIECES:
        piece = video.as_trimmed(0.0, min(duration or seconds, seconds), strict_duration=False)
        images = None if piece is None else piece.get_components().images
        if images is not None and len(images):
            expected = images[0][..., :3].movedim(-1, 0)
            return expected.shape == first.shape and bool((expected - first).abs().max() <= CLOSE)
    return False
