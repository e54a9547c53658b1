"""The views as commands: PNG files, and messages about missing parts."""

import pytest
import torch
from PIL import Image

from stillmotion.evaluation.drawing.views import as_picture
from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.diffusers_host.harivo import attach
from stillmotion.model_patches.diffusers_host.pocket import load_pocket
from stillmotion.model_patches.diffusers_host.views import cross_attentions, token_attention
from stillmotion.model_patches.harivo.config import HarivoConfig, MappingConfig, TokenConfig
from stillmotion.model_patches.harivo.model import HarivoModel
from stillmotion.training.__main__ import main
from stillmotion.training.tools.view import read_frames


def harivo(root, **changes):
    torch.manual_seed(1)
    motion = MotionConfig.from_dict(checkpoint.load(root / "pocket" / "motion.safetensors").config)
    parts = {
        "mapping": MappingConfig(width=16, heads=4),
        "tokens": TokenConfig(context_dim=128, frames=16),
    }
    model = HarivoModel(HarivoConfig(motion=motion, **parts | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval().requires_grad_(False)


@pytest.fixture
def run(root, tmp_path):
    """run(what, model, ...) -> the image that the command wrote."""

    def command(*arguments, model=None):
        if model is not None:
            path = tmp_path / "harivo.safetensors"
            checkpoint.save(path, system="harivo", config=model.config.to_dict(), weights=model.state_dict())
            arguments = (arguments[0], str(path), *arguments[1:])
        out = tmp_path / "pictures" / "view.png"
        assert main(["view", *arguments, "--out", str(out)]) == 0
        with Image.open(out) as picture:
            return picture.copy()

    return command


def animation(path, frames):
    pictures = [as_picture(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], lossless=True)


def test_a_slice_of_a_video_file(run, tmp_path):
    frames = torch.rand(5, 3, 20, 30)
    animation(tmp_path / "clip.webp", frames)
    read = read_frames(tmp_path / "clip.webp")
    torch.testing.assert_close(read, frames, rtol=0, atol=0.5 / 255 + 1e-6)
    assert run("slice", str(tmp_path / "clip.webp"), "--line", "column").width > 600


def test_frames_of_a_movie_are_those_of_its_container(tmp_path):
    import av

    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        for level in (40, 120, 200):
            picture = Image.new("RGB", (32, 32), (level, level, level))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    frames = read_frames(tmp_path / "clip.mp4")
    assert frames.shape == (3, 3, 32, 32)
    assert [round(v * 255 / 40) for v in frames.mean((1, 2, 3)).tolist()] == [1, 3, 5]


@pytest.mark.slow
def test_the_mapping_and_the_noise_behind_it(run, root):
    assert run("mapping", model=harivo(root)).size == (960, 960)
    plain = run("noise", "--frames", "4").height
    assert run("noise", "--frames", "4", model=harivo(root)).height == plain + 34  # one additional row
    with pytest.raises(SystemExit, match="trained without mapping"):
        run("mapping", model=harivo(root, mapping=None))
    with pytest.raises(SystemExit, match="view mapping needs a file"):
        run("mapping")


@pytest.mark.slow
def test_the_tokens_of_a_clip(run, root, comfyui_dir):
    assert run("tokens", "--prompt", "a red circle moving right", model=harivo(root)).width > 1000
    with pytest.raises(SystemExit, match="trained without tokens"):
        run("tokens", model=harivo(root, tokens=None))


@torch.no_grad()
def test_the_maps_are_read_without_a_trace(root):
    """The forward stays bit for bit the same, no hook remains, and a model without tokens is refused."""
    pocket = load_pocket(root / "pocket" / "pocket.safetensors")
    handle = attach(pocket.unet, harivo(root))
    handle.frames = 4
    x, context = torch.randn(4, 4, 16, 16), torch.randn(1, 77, 128).expand(4, -1, -1)
    before = pocket.unet(x, torch.full((4,), 300), context).sample
    hooks = [len(layer._forward_pre_hooks) for layer in cross_attentions(pocket.unet)]
    maps = token_attention(pocket.unet, x, 300, context)
    assert maps.shape == (4, 3, 16, 16)
    assert maps.min() > 0
    assert maps.sum(1).max() < 1
    assert torch.equal(pocket.unet(x, torch.full((4,), 300), context).sample, before)
    assert [len(layer._forward_pre_hooks) for layer in cross_attentions(pocket.unet)] == hooks
    handle.tokens = 0.0
    with pytest.raises(ValueError, match="no frame-wise tokens were appended"):
        token_attention(pocket.unet, x, 300, context)
    handle.remove()
