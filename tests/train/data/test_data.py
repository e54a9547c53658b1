"""Cached latents of drawn clips and of video files, and which input is refused."""

import copy

import av
import numpy as np
import pytest
import torch

from stillmotion.model_patches.diffusers_host.pocket import new_vae
from stillmotion.model_patches.pocket import SCALE, PocketConfig
from stillmotion.training.data import latents
from stillmotion.training.data.videos import clips, encode_folder, square

SMALL = PocketConfig(vae_channels=(32, 32, 32))


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return new_vae(SMALL).eval().requires_grad_(False)


def write_video(path, frames, fps, size=(48, 32)):
    """Write a video whose frame i has the grey level 8 i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height = size
        for i in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 8 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def greys(clip):
    return ((clip.mean((1, 2, 3)) + 1) * 127.5 / 8).round().int().tolist()


def test_a_video_is_cut_into_clips_at_the_rate_asked_for(tmp_path):
    write_video(tmp_path / "a.mp4", 24, 12)
    assert [greys(clip) for clip in clips(tmp_path / "a.mp4", frames=4, fps=6, size=16)] == [
        [0, 2, 4, 6],
        [8, 10, 12, 14],
        [16, 18, 20, 22],
    ]


def test_the_middle_square_is_taken():
    picture = torch.zeros(20, 40, 3, dtype=torch.uint8)
    picture[:, 10:30] = 255
    assert square(picture, 10).min() > 0.9
    assert square(picture.transpose(0, 1), 10).shape == (3, 10, 10)


def test_a_folder_of_videos_becomes_shards_with_their_captions(tmp_path, vae, caplog):
    for name, frames in (("a", 24), ("b", 12), ("short", 4)):
        write_video(tmp_path / f"{name}.mp4", frames, 12)
        (tmp_path / f"{name}.txt").write_text(f"caption {name}\n")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "broken.txt").write_text("x")
    options = {"frames": 4, "fps": 6, "size": 32, "scale": SCALE, "shard": 3}
    assert encode_folder(vae, tmp_path, tmp_path / "latents", **options) == 4
    assert "broken.mp4 cannot be read" in caplog.text
    assert "short.mp4 is skipped: it has 2 frames at 6 fps, a clip needs 4" in caplog.text
    cache = latents.read(tmp_path / "latents", vae)
    assert len(cache) == 4
    assert cache.captions == ["caption a"] * 3 + ["caption b"]
    assert cache.shape == (4, 8, 8)
    (clip,) = clips(tmp_path / "b.mp4", frames=4, fps=6, size=32)
    torch.testing.assert_close(cache.frames(3, 4), latents.encode_frames(vae, clip, SCALE).float())
    torch.testing.assert_close(cache.image(3, 32), clip[0] / 2 + 0.5, rtol=0, atol=0.5 / 255 + 1e-6)  # stored as bytes


def test_a_video_without_a_caption_is_named(tmp_path, vae):
    options = {"frames": 4, "fps": 6, "size": 32, "scale": SCALE}
    with pytest.raises(ValueError, match="there is no video"):
        encode_folder(vae, tmp_path, tmp_path / "latents", **options)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"1 videos have no caption, the first is a\.mp4"):
        encode_folder(vae, tmp_path, tmp_path / "latents", **options)


def test_the_digest_tells_whether_the_data_is_the_same(tmp_path, vae):
    def digest_of(folder, **changes):
        path = tmp_path / folder / "clips-000000.safetensors"
        latents.encode(vae, path, **{"first": 0, "count": 2, "times": [0.0, 1.0], "seed": 0, "scale": SCALE} | changes)
        return latents.read(tmp_path / folder, vae).digest

    assert digest_of("a") == digest_of("b") != digest_of("c", seed=1)
    assert digest_of("d", times=[0.0, 0.5]) != digest_of("a")


def test_fewer_frames_are_spread_over_the_clip():
    values = torch.arange(8.0).view(1, 8, 1, 1, 1).half()
    assert latents.Latents(values, [i / 7 for i in range(8)], 0).frames(0, 4).flatten().tolist() == [0, 2, 4, 6]


def shards_of(vae, folder, counts, times=(0.0, 1.0)):
    for first, count in zip([0, *torch.tensor(counts).cumsum(0).tolist()], counts, strict=False):
        path = folder / f"clips-{first:06d}.safetensors"
        latents.encode(vae, path, first=first, count=count, times=list(times), seed=0, scale=SCALE)


def test_clips_of_many_shards_are_read_one_by_one(tmp_path, vae):
    """The latents are not loaded into memory; each clip comes from the right file, and a copy reopens the files."""
    shards_of(vae, tmp_path / "one", [5])
    shards_of(vae, tmp_path / "three", [2, 2, 1])
    one, three = (latents.read(tmp_path / name, vae) for name in ("one", "three"))
    assert not isinstance(three.values, torch.Tensor)
    assert three.values.shape == (5, 2, 4, 16, 16)
    assert three.shape == one.shape == (4, 16, 16)
    again = copy.deepcopy(three)
    for i in range(5):
        assert torch.equal(three.frames(i, 2), one.frames(i, 2))
        assert torch.equal(again.frames(i, 2), one.frames(i, 2))
    for outside in (-1, 5):
        with pytest.raises(IndexError, match=f"clip {outside} of 5"):
            three.frames(outside, 2)


def test_shards_with_clips_of_other_sizes_are_refused(tmp_path, vae):
    shards_of(vae, tmp_path, [2])
    latents.encode(vae, tmp_path / "clips-000002.safetensors", first=2, count=1, times=[0, 0.5, 1], seed=0, scale=SCALE)
    with pytest.raises(ValueError, match=r"clips of several sizes \(2x4x16x16, 3x4x16x16\)"):
        latents.read(tmp_path, vae)
