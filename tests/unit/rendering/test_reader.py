"""Frames are read from a file one at a time, in order, and unchanged."""

import io
from typing import Any

import av
import numpy as np
import pytest
import torch

from stillmotion.rendering import reader


@pytest.fixture
def video(tmp_path):
    """A lossless file of 10 frames at 5 fps, and the frames."""
    frames = torch.randint(0, 256, (10, 16, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = tmp_path / "ten.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 24, 16, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    return path, frames.permute(0, 3, 1, 2) / 255


def test_frames_are_those_that_were_written(video):
    path, frames = video
    assert torch.equal(torch.stack(list(reader.frames(path))), frames)
    assert torch.equal(torch.stack(list(reader.frames(io.BytesIO(path.read_bytes())))), frames)


def test_a_part_is_read_by_time(video):
    path, frames = video
    assert torch.equal(torch.stack(list(reader.frames(path, start=0.4, duration=0.6))), frames[2:5])


def test_unreadable_files_are_named(video, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be read"):
        next(reader.frames(text))
    with pytest.raises(ValueError, match="no frame from 7"):
        next(reader.frames(video[0], start=7.0))
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        audio = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        audio.sample_rate = 8000
        container.mux(stream.encode(audio))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="no video stream"):
        next(reader.frames(sound))


@pytest.mark.parametrize(("width", "height"), [(64, 32), (40, 56), (56, 40), (33, 31)])
def test_ten_bit_frames_of_every_size_are_shares_of_1023(width, height):
    """Sizes that are no multiple of 32 are padded for the conversion, which must not reach the picture."""
    generator = np.random.default_rng(0)
    pictures = reader.Pictures()
    for _ in range(2):
        values = generator.integers(0, 1024, (height, width, 3), dtype=np.uint16)
        picture = pictures.of(av.VideoFrame.from_ndarray(values, format="gbrp10le"))
        expected = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1) / 1023
        torch.testing.assert_close(picture, expected, rtol=0, atol=2e-3)  # FFmpeg rounds


@pytest.mark.parametrize(("rotation", "turns"), [(0, 0), (90, 1), (180, 2), (-180, 2), (270, 3), (-90, 3), (-89.9, 3)])
@pytest.mark.parametrize("kind", ["rgb24", "gbrp10le"])
def test_frames_are_turned_counter_clockwise_by_their_rotation(rotation, turns, kind):
    class Turned:
        """A frame with the rotation that the file of a phone has."""

        def __init__(self, frame):
            self.frame, self.rotation = frame, rotation

        def __getattr__(self, name):
            return getattr(self.frame, name)

    values: Any = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8 if kind == "rgb24" else np.uint16)
    frame = av.VideoFrame.from_ndarray(values, format=kind)
    upright = reader.Pictures().of(frame)
    picture = reader.Pictures().of(Turned(frame))  # type: ignore[arg-type]
    assert torch.equal(picture, torch.rot90(upright, turns, (1, 2)))
