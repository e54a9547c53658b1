"""A tiny pocket model with random weights, and latents of its autoencoder."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from stillmotion.model_patches.diffusers_host.pocket import Pocket, new_text_encoder, new_unet, new_vae
from stillmotion.model_patches.pocket import SCALE, PocketConfig
from stillmotion.training.data import latents, sprites
from stillmotion.training.pocket.text import Vocabulary

SMALL = PocketConfig(unet_channels=(32, 64), unet_attention=(False, True), vae_channels=(32, 32, 32), context=32)


@pytest.fixture(scope="module")
def vocabulary(comfyui_dir):
    return Vocabulary(comfyui_dir / "comfy" / "sd1_tokenizer")


@pytest.fixture(scope="module")
def small():
    """The three networks of the tiny pocket model."""
    torch.manual_seed(0)
    unet, vae, text = new_unet(SMALL), new_vae(SMALL), new_text_encoder(SMALL)
    for module in (unet, vae, text):
        module.eval().requires_grad_(False)
    return Pocket(unet, vae, text, SMALL)


@pytest.fixture(scope="module")
def shards(small, tmp_path_factory):
    """Five clips of four frames in two files."""
    folder = tmp_path_factory.mktemp("latents")
    for first, count in ((0, 3), (3, 2)):
        path = folder / f"clips-{first:06d}.safetensors"
        times = sprites.frame_times(4)
        latents.encode(small.vae, path, first=first, count=count, times=times, seed=0, scale=SCALE)
    return folder


@pytest.fixture(scope="module")
def clip_folder(comfyui_dir, tmp_path_factory):
    """A CLIP with random weights, and its vocabulary."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # untrained, its features hardly vary
    model.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((comfyui_dir / "comfy" / "sd1_tokenizer" / name).read_bytes())
    return folder
