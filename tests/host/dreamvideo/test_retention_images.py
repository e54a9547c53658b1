"""Image files as ComfyUI's own LoadImage reads them, and what the branch receives."""

import warnings
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from stillmotion.model_patches.core.pictures import fit

from ..artv.test_autoregressive import conditioning
from .test_staged import branch_file

ROWS, COLUMNS = 48, 64
RAMP = np.tile(np.arange(COLUMNS, dtype=np.uint8) * 4, (ROWS, 1))
COLOURS = np.stack([RAMP, 255 - RAMP, RAMP // 2], -1)


@pytest.fixture
def folder(comfy, tmp_path):
    import folder_paths

    before = folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_input_directory(before)


@pytest.fixture
def loaded(folder):
    """loaded(name) -> IMAGE and MASK of a file, from ComfyUI's own node."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of imported packages
        import nodes
    return lambda name: nodes.LoadImage().load_image(name)


@pytest.fixture
def branch_image(comfy, folder):
    """branch_image(image) -> (1, 3, h, w), the image that the node passes to the branch."""
    from stillmotion.model_patches.comfy_host.dreamvideo.retention import load_branch, retention_of
    from stillmotion.nodes import dreamvideo

    node: Any = dreamvideo.ApplyImageRetention
    branch = load_branch(branch_file(folder / "d.safetensors"))

    def show(image):
        positive, _ = node.execute(conditioning(1), conditioning(2), branch, 1.0, 0.0, 1.0, "crop", image).result
        control: Any = retention_of(positive)
        return control.image

    return show


def deep(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG with 16 bits per channel."""
    frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint16) * 257, format="rgb48le").reformat(format="rgb48be")
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as file:
        stream = file.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = COLUMNS, ROWS, "rgb48be"
        file.mux([*stream.encode(frame), *stream.encode()])


def expected(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


GREY = np.stack([RAMP] * 3, -1)


@pytest.mark.parametrize(
    ("name", "write", "pixels"),
    [
        ("colour.png", lambda path: Image.fromarray(COLOURS).save(path), COLOURS),
        ("grey.png", lambda path: Image.fromarray(RAMP).save(path), GREY),
        ("grey_16_bit.png", lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path), GREY),
        ("colour_16_bit.png", lambda path: deep(path, COLOURS), COLOURS),
        ("palette.gif", lambda path: Image.fromarray(RAMP).save(path), GREY),
    ],
)
def test_whatever_the_file_the_branch_gets_its_colours(loaded, branch_image, folder, name, write, pixels):
    write(folder / name)
    image, _ = loaded(name)
    torch.testing.assert_close(branch_image(image).cpu(), expected(pixels), rtol=0, atol=1.1 / 255)


def test_alpha_is_laid_over_white_when_it_comes_along(loaded, branch_image, folder):
    """LoadImage returns alpha as a mask; ComfyUI's Join Image with Alpha restores it."""
    from comfy_extras import nodes_compositing

    Image.fromarray(np.concatenate([COLOURS, RAMP[..., None]], -1)).save(folder / "a.png")
    image, mask = loaded("a.png")
    alpha = RAMP[..., None] / np.float32(255)
    join: Any = nodes_compositing.JoinImageWithAlpha
    (joined,) = join.execute(image, mask).result
    over = torch.from_numpy(COLOURS / np.float32(255) * alpha + 1 - alpha).permute(2, 0, 1)[None]
    torch.testing.assert_close(branch_image(joined), over, rtol=0, atol=1e-3)
    torch.testing.assert_close(branch_image(image), expected(COLOURS), rtol=0, atol=1e-3)  # the hidden colour


def test_a_file_of_several_pictures_is_refused_with_a_remedy(loaded, branch_image, folder):
    pictures = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    pictures[0].save(folder / "two.gif", save_all=True, append_images=pictures[1:])
    image, _ = loaded("two.gif")
    with pytest.raises(ValueError, match="the input has 2 images, but one is needed; select one of the batch"):
        branch_image(image)
    branch_image(image[1:])


@pytest.mark.slow
def test_a_huge_picture_is_made_small_without_losing_its_colours(loaded, branch_image, folder):
    """All pixels contribute: a fine pattern becomes its mean, not one of its pixels."""
    fine = np.zeros((3000, 4000, 3), dtype=np.uint8)
    fine[::2, ::2] = 200
    Image.fromarray(fine).save(folder / "huge.bmp")
    image, _ = loaded("huge.bmp")
    small = fit(branch_image(image), 64, 64)
    assert small.shape == (1, 3, 64, 64)
    torch.testing.assert_close(small[..., 1:-1, 1:-1], torch.full((1, 3, 62, 62), 50 / 255), rtol=0, atol=0.01)
