"""Pseudo-videos: `smooth` moves evenly where FFmpeg's zoompan jitters, and both show the same views."""

import numpy as np
import pytest
import torch
from PIL import Image

from stillmotion.model_patches.diffusers_host.pocket import new_vae
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.training.data import latents, pseudo
from stillmotion.training.data.pseudo import Camera, View, camera, smooth, zoompan

SIZE, FRAMES, SPEED = 64, 32, 0.35  # SPEED in pixels per frame


def ramp(side=128):
    """An image that gets brighter from left to right: a soft edge, whose position can be measured to below a pixel."""
    across = (torch.arange(side) + 0.5) / side
    return ((across - 0.5) * 4).clamp(-1, 1).expand(3, side, side).contiguous()


def panned():
    """A slow pan to the right over half of the image."""
    end = 0.4 + SPEED * (FRAMES - 1) / 128
    return Camera(View(0.4, 0.5, 0.5), View(end, 0.5, 0.5))


def places(frames):
    """Position of the edge's centre in each frame, in pixels."""
    lines = frames.mean(1)[:, SIZE // 4 : -SIZE // 4].mean(1)  # (f, w)
    positions = []
    for line in lines.numpy():
        after = int(np.argmax(line > 0))
        positions.append(after - line[after] / (line[after] - line[after - 1]))
    return np.array(positions)


def jitter(frames):
    """Standard deviation from a uniform motion in pixels, and the speed of that motion."""
    at, time = places(frames), np.arange(FRAMES)
    slope, start = np.polyfit(time, at, 1)
    return float(np.std(at - slope * time - start)), float(slope)


def test_a_slow_pan_is_even_and_the_paper_s_way_shakes():
    even, speed = jitter(smooth(ramp(), panned(), FRAMES, SIZE))
    shaken, _ = jitter(zoompan(ramp(), panned(), FRAMES, SIZE))
    assert speed == pytest.approx(-SPEED, abs=0.01)
    assert even < 0.01
    assert shaken > 0.1


def test_both_ways_show_the_same_views():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image = torch.nn.functional.interpolate(image[None], (256, 256), mode="bicubic")[0].clamp(-1, 1)
    for path in (Camera(View(0.4, 0.5, 0.6), View(0.6, 0.45, 0.8)), camera(0, 3)):
        smooth_clip, ffmpeg_clip = smooth(image, path, 6, SIZE), zoompan(image, path, 6, SIZE)
        assert smooth_clip.shape == ffmpeg_clip.shape == (6, 3, SIZE, SIZE)
        assert (smooth_clip - ffmpeg_clip).abs().mean() < 0.05
        assert (smooth_clip[0] - smooth_clip[-1]).abs().mean() > 0.1


def test_a_camera_that_rests_gives_the_image():
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    still = Camera(View(0.5, 0.5, 1.0), View(0.5, 0.5, 1.0))
    frames = smooth(image, still, 3, 32)
    torch.testing.assert_close(frames, image.expand(3, -1, -1, -1), atol=1e-5, rtol=0)


def test_cameras_are_pure_functions_of_their_number_and_stay_within_the_image():
    assert camera(1, 2) == camera(1, 2) != camera(1, 3)
    for k in range(200):
        for view in (camera(0, k).first, camera(0, k).last):
            assert 0.6 <= view.side <= 1.0
            for centre in (view.x, view.y):
                assert view.side / 2 - 1e-9 <= centre <= 1 - view.side / 2 + 1e-9


def test_a_folder_of_images_becomes_latents_with_their_captions(tmp_path):
    torch.manual_seed(0)
    vae = new_vae(PocketConfig(vae_channels=(32, 32, 32))).eval()
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate(((40, 60), (64, 64))):
        pixels = np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    sizes = {"clips": 5, "frames": 3, "fps": 4.0, "size": 16, "scale": 1.0, "shard": 2}
    with pytest.raises(ValueError, match=r"2 images have no caption, the first is 0\.png"):
        pseudo.encode_folder(vae, folder, tmp_path / "none", **sizes)
    for i in range(2):
        (folder / f"{i}.txt").write_text(f"picture {i}\n")
    assert pseudo.encode_folder(vae, folder, tmp_path / "out", **sizes) == 5
    cache = latents.read(tmp_path / "out", vae)
    assert (len(cache), cache.times, cache.shape) == (5, [0.0, 0.25, 0.5], (4, 4, 4))
    assert sorted(cache.captions[:2]) == ["picture 0", "picture 1"]
    assert not torch.equal(cache.values[0], cache.values[4])
    with pytest.raises(ValueError, match=r"there is no image; put NAME\.txt beside each image"):
        pseudo.encode_folder(vae, tmp_path / "out", tmp_path / "other", **sizes)
