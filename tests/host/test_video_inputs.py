"""The frames of a VIDEO are those that ComfyUI's own nodes get from it, whatever its file is like."""

import io
import struct
from typing import Any

import av
import numpy as np
import pytest
import torch

LAST = 1.5 / 255  # of one conversion against another


@pytest.fixture
def frames_of(comfy):
    from stillmotion.nodes.render.reading import frames_of

    return lambda video: torch.stack(list(frames_of(video)))


def comfyui_frames(video):
    """What ComfyUI gives, in the shape of our frames."""
    return video.get_components().images[..., :3].movedim(-1, 1)


def encoded(name, *, frames=6, size=(64, 32), codec="libx264", pixels="yuv420p", rate=8, times=None, options=None):
    """A file of frames with a red left half, a moving bar and a gradient."""
    width, height = size
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=name) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for number in range(frames):
            picture = np.zeros((height, width, 3), np.uint8)
            picture[:, : width // 2, 0], picture[:, :, 1] = 255, np.linspace(0, 255, width).astype(np.uint8)
            picture[number * 4 : number * 4 + 4] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            if times is not None:
                frame.pts = times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return io.BytesIO(buffer.getvalue())


def turned(data):
    """The same file with a rotation of 90 degrees in its header, as a phone that is held upright writes it."""
    content = bytearray(data.getvalue())
    place = content.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 32 << 16, 0, 0x40000000)
    content[place : place + 36] = matrix
    return io.BytesIO(bytes(content))


FILES = {
    "plain": lambda: encoded("mp4"),
    "turned": lambda: turned(encoded("mp4")),
    "odd width": lambda: encoded("mp4", size=(70, 38)),
    "10 bit": lambda: encoded("matroska", codec="ffv1", pixels="yuv420p10le"),
    "alpha": lambda: encoded("matroska", codec="ffv1", pixels="yuva420p"),
    "rgb": lambda: encoded("matroska", codec="ffv1", pixels="bgr0"),
    "full range": lambda: encoded("avi", codec="mjpeg", pixels="yuvj420p"),
    "variable rate": lambda: encoded("matroska", codec="ffv1", pixels="yuv444p", times=[0, 1, 5, 6, 20, 21]),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_are_read_as_comfyui_reads_them(comfy, frames_of, kind):
    from comfy_api.v0_0_2 import InputImpl

    video = InputImpl.VideoFromFile(FILES[kind]())
    frames_read, expected = frames_of(video), comfyui_frames(video)
    assert frames_read.shape == expected.shape
    assert (frames_read - expected).abs().max() < LAST


def test_a_turned_video_is_upright(comfy, frames_of):
    from comfy_api.v0_0_2 import InputImpl

    assert frames_of(InputImpl.VideoFromFile(FILES["turned"]())).shape == (6, 3, 64, 32)


def test_ten_bit_are_not_rounded_to_eight(comfy, frames_of):
    from comfy_api.v0_0_2 import InputImpl

    values = frames_of(InputImpl.VideoFromFile(FILES["10 bit"]())) * 255
    assert (values - values.round()).abs().max() > 0.1


@pytest.mark.parametrize(("start", "duration"), [(0.25, 0.0), (0.0, 0.3), (0.25, 0.25), (-0.25, 0.0)])
def test_a_trim_is_comfyuis(comfy, frames_of, start, duration):
    from comfy_api.v0_0_2 import InputImpl

    video = InputImpl.VideoFromFile(FILES["plain"](), start_time=start, duration=duration)
    frames_read, expected = frames_of(video), comfyui_frames(video)
    assert frames_read.shape == expected.shape
    assert (frames_read - expected).abs().max() < LAST


def test_a_trim_counts_from_the_time_of_the_file(comfy, frames_of):
    """A file may begin late, as parts of a stream do; ComfyUI does not count from its first frame."""
    from comfy_api.v0_0_2 import InputImpl

    times = [8, 9, 10, 11, 12, 13]
    late = encoded("matroska", codec="ffv1", pixels="yuv444p", times=times)
    for start in (0.0, 1.25):
        video = InputImpl.VideoFromFile(late, start_time=start)
        frames_read = frames_of(video)
        assert frames_read.shape == comfyui_frames(video).shape
        assert len(frames_read) == (6 if not start else 4)


def test_a_crop_that_is_kept_beside_the_file_is_applied(comfy, frames_of):
    """As newer versions of ComfyUI have it."""
    from comfy_api.v0_0_2 import InputImpl

    class Cropped(InputImpl.VideoFromFile):
        def get_components(self):
            components = super().get_components()
            components.images = components.images[:, :, 32:]
            return components

    video: Any = Cropped(FILES["plain"]())
    assert torch.equal(frames_of(video), comfyui_frames(video))
    assert frames_of(video).shape == (6, 3, 32, 32)


def test_an_edit_that_a_trimmed_part_shows_too_is_seen_on_the_first_frame(comfy, frames_of, monkeypatch):
    from comfy_api.v0_0_2 import InputImpl

    read = InputImpl.VideoFromFile.get_components

    def darker(self):
        components = read(self)
        components.images = components.images * 0.5
        return components

    monkeypatch.setattr(InputImpl.VideoFromFile, "get_components", darker)  # a host that edits every VIDEO
    video = InputImpl.VideoFromFile(FILES["plain"]())
    assert torch.equal(frames_of(video), comfyui_frames(video))


def test_images_become_the_same_frames_without_a_codec_between(comfy, frames_of):
    from fractions import Fraction

    from comfy_api.v0_0_2 import InputImpl, Types

    images = torch.rand(5, 16, 24, 3, generator=torch.Generator().manual_seed(0))
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=Fraction(8)))
    assert torch.equal(frames_of(video), images.movedim(-1, 1))


def test_a_video_without_a_frame_is_named(comfy, frames_of):
    from comfy_api.v0_0_2 import InputImpl

    with pytest.raises(ValueError, match="no frame"):
        frames_of(InputImpl.VideoFromFile(FILES["plain"](), start_time=5.0))


def test_files_are_read_one_frame_at_a_time(comfy, monkeypatch):
    """Only the first frame is asked of ComfyUI, which reads whole videos."""
    from comfy_api.v0_0_2 import InputImpl

    from stillmotion.nodes.render.reading import frames_of

    counts = []
    read = InputImpl.VideoFromFile.get_components

    def counted(self):
        components = read(self)
        counts.append(len(components.images))
        return components

    monkeypatch.setattr(InputImpl.VideoFromFile, "get_components", counted)
    assert len(list(frames_of(InputImpl.VideoFromFile(encoded("mp4", frames=40, size=(64, 192)))))) == 40
    assert counts == [1]
