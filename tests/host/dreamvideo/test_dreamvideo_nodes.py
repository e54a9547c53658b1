"""The nodes of DreamVideo, called in the way ComfyUI calls them."""

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.assembly import dreamvideo_model
from stillmotion.model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig


@pytest.fixture
def nodes(comfy, tmp_path):
    """Our nodes, with a folder models/stillmotion of this test that contains one file."""
    import folder_paths

    from stillmotion.nodes import dreamvideo

    sizes = {"block_channels": (32, 64), "attention": (False, True), "heads": (2, 2), "layers_per_block": 1}
    config = DreamVideoConfig(branch=RetentionConfig(**sizes, context_dim=32, linear_projection=False, temporal="none"))
    torch.manual_seed(0)
    weights = {k: torch.randn_like(v) * 0.1 for k, v in dreamvideo_model(config).state_dict().items()}
    checkpoint.save(tmp_path / "mine.safetensors", system="dreamvideo", config=config.to_dict(), weights=weights)
    before = folder_paths.folder_names_and_paths["stillmotion"]
    folder_paths.folder_names_and_paths["stillmotion"] = ([str(tmp_path)], before[1])
    folder_paths.filename_list_cache.pop("stillmotion", None)
    yield dreamvideo
    folder_paths.folder_names_and_paths["stillmotion"] = before
    folder_paths.filename_list_cache.pop("stillmotion", None)


@pytest.fixture
def branch(nodes):
    return nodes.LoadRetentionBranch.execute("mine.safetensors").result[0]


def conditioning(seed):
    return [[torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(seed)), {}]]


def test_the_loader_lists_files_and_describes_one(nodes):
    (entry,) = nodes.LoadRetentionBranch.define_schema().inputs
    assert "mine.safetensors" in entry.options
    _branch, info = nodes.LoadRetentionBranch.execute("mine.safetensors").result
    assert "a retention branch for block channels (32, 64) and text 32 wide" in info
    assert nodes.LoadRetentionBranch.fingerprint_inputs("mine.safetensors")[1] > 1000
    with pytest.raises(
        ValueError, match=r"retention branch: the file gone\.safetensors does not exist; put it in one of"
    ):
        nodes.LoadRetentionBranch.execute("gone.safetensors")


def test_text_and_image_image_alone_and_text_alone_are_three_videos(nodes, branch, tiny_sd):
    from comfy import samplers

    def video(positive, image, **scales):
        pair = nodes.ApplyImageRetention.execute(positive, conditioning(2), branch, 1.0, 0.0, 1.0, "crop", image).result
        settings = {"text_scale": 7.5, "image_scale": 2.0} | scales
        (guider,) = nodes.DoubleConditionGuider.execute(tiny_sd, *pair, **settings).result
        noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        sampler, sigmas = samplers.sampler_object("euler"), torch.tensor([9.0, 2.0, 0.0])
        with torch.inference_mode():
            return guider.sample(noise, noise * 0, sampler, sigmas, disable_pbar=True).clone()

    image = torch.rand(1, 48, 64, 4, generator=torch.Generator().manual_seed(2))
    videos = [
        video(conditioning(1), image),
        video(conditioning(2), image),
        video(conditioning(1), None),
        video(conditioning(3), image),
    ]
    assert not any(torch.allclose(a, b, rtol=0.01) for i, a in enumerate(videos) for b in videos[:i])
    assert torch.equal(video(conditioning(1), image), videos[0])
    # a white image means no image, so that the image scale has no effect
    assert torch.allclose(video(conditioning(1), None, image_scale=9.0), videos[2], rtol=1e-3, atol=1e-3)


def test_a_bad_image_is_an_error_of_the_node_that_got_it(nodes, branch):
    with pytest.raises(ValueError, match="the input has 3 images, but one is needed"):
        nodes.ApplyImageRetention.execute(
            conditioning(1), conditioning(2), branch, 1.0, 0.0, 1.0, "crop", torch.rand(3, 8, 8, 3)
        )
