"""One pocket file in two hosts: ComfyUI's own classes and diffusers' must give the same networks."""

import json

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.diffusers_host import pocket as diffusers_pocket
from stillmotion.model_patches.layouts import CheckpointError
from stillmotion.model_patches.ldm_names import inverse, unet_prefixes, vae_prefixes
from stillmotion.model_patches.pocket import SYSTEM, TOKEN_IDS, PocketConfig, compact, expand_tokens

WORDS = [320, 736, 3449, 49406, 49407]  # ids of words such as "a", "red", "circle", and the two special tokens


@pytest.fixture(scope="module")
def pocket_file(tmp_path_factory):
    """A pocket file with random weights."""
    torch.manual_seed(0)
    config = PocketConfig()
    unet, vae = diffusers_pocket.new_unet(config), diffusers_pocket.new_vae(config)
    text = diffusers_pocket.new_text_encoder(config, len(WORDS) + 1)
    weights = compact(config, unet.state_dict(), vae.state_dict(), text.state_dict(), WORDS)
    path = tmp_path_factory.mktemp("pocket") / "pocket.safetensors"
    preview = {"factors": [[0.1, 0.2, 0.3]] * 4, "bias": [0.0, 0.0, 0.0]}
    header = {"preview": json.dumps(preview)}
    checkpoint.save(path, system=SYSTEM, config=config.to_dict(), weights=weights, header=header)
    return path


@pytest.fixture(scope="module")
def hosts(comfy, pocket_file):
    from stillmotion.model_patches.comfy_host.pocket import load_pocket

    return load_pocket(pocket_file), diffusers_pocket.load_pocket(pocket_file)


def test_the_names_are_a_bijection():
    for names in (unet_prefixes(4, 2, (True, True, True, False)), vae_prefixes(4, 2)):
        assert inverse(inverse(names)) == names


def test_a_word_outside_the_captions_gets_the_last_row():
    full = expand_tokens(torch.arange(3.0).view(3, 1), torch.tensor([5, 2]), vocabulary=7)
    assert full.flatten().tolist() == [2, 2, 1, 2, 2, 0, 2]
    with pytest.raises(ValueError, match="one more row"):
        expand_tokens(torch.zeros(2, 1), torch.tensor([5, 2]))


def test_both_hosts_give_the_same_eps(hosts):
    (model, _, _), pocket = hosts
    g = torch.Generator().manual_seed(3)
    x, context = torch.randn(4, 4, 16, 16, generator=g), torch.randn(4, 77, 128, generator=g)
    t = torch.tensor([1.0, 200.0, 600.0, 999.0])
    with torch.inference_mode():
        output = model.model.diffusion_model(x, t, context=context)
        expected = pocket.unet(x, t, context).sample
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)


def test_both_hosts_encode_a_prompt_alike(hosts):
    (_, clip, _), pocket = hosts
    ids = torch.tensor([[49406, 320, 736, 3449] + [49407] * 73])
    with torch.inference_mode():
        expected = pocket.text(ids).last_hidden_state
        tokens = {"l": [[(int(i), 1.0) for i in ids[0]]]}
        output = clip.encode_from_tokens(tokens)
    torch.testing.assert_close(output.cpu(), expected, rtol=0, atol=1e-4)


def test_the_tokenizer_is_the_stock_one(hosts, comfyui_dir):
    from transformers import CLIPTokenizer

    (_, clip, _), _ = hosts
    stock = CLIPTokenizer.from_pretrained(str(comfyui_dir / "comfy" / "sd1_tokenizer"))
    text = "a big red star moving left quickly in the night sky"
    output = [token for token, _ in clip.tokenize(text)["l"][0]]
    ids = stock(text)["input_ids"]
    assert output == ids + [49407] * (77 - len(ids))


def test_both_hosts_decode_and_encode_alike(hosts):
    (_, _, vae), pocket = hosts
    g = torch.Generator().manual_seed(4)
    z = torch.randn(2, 4, 16, 16, generator=g)
    with torch.inference_mode():
        expected = (pocket.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
        output = vae.decode(z).permute(0, 3, 1, 2)
        torch.testing.assert_close(output.float().cpu(), expected, rtol=0, atol=1e-4)
        pictures = torch.rand(2, 64, 64, 3, generator=g)
        latents = vae.encode(pictures)
        assert latents.shape == (2, 4, 16, 16)
        mean = pocket.vae.encode(pictures.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mean
        torch.testing.assert_close(latents.float().cpu(), mean, rtol=0, atol=1e-3)


def test_stock_nodes_work_with_it(hosts, comfy):
    """CLIPTextEncode, EmptyLatentImage (8 pixels per latent; the pocket has 4), KSampler, VAEDecode, VAEEncode."""
    import nodes as stock

    (model, clip, vae), _ = hosts
    with torch.inference_mode():
        (positive,) = stock.CLIPTextEncode().encode(clip, "a red star")
        (negative,) = stock.CLIPTextEncode().encode(clip, "")
        (latent,) = stock.EmptyLatentImage().generate(64, 64, 2)
        (out,) = stock.KSampler().sample(model, 1, 2, 7.5, "ddim", "normal", positive, negative, latent)
        assert out["samples"].shape == (2, 4, 16, 16)
        (images,) = stock.VAEDecode().decode(vae, out)
        assert images.shape == (2, 64, 64, 3)
        (again,) = stock.VAEEncode().encode(vae, images)
        assert again["samples"].shape == (2, 4, 16, 16)


def test_a_lora_in_ldm_names_changes_the_unet(hosts, comfy):
    import comfy.lora
    import comfy.sd

    (model, clip, _), _ = hosts
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = {f"{key}.lora_down.weight": torch.randn(4, 128), f"{key}.lora_up.weight": torch.randn(128, 4)}
    patched, _ = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 0.0)
    assert patched is not None
    assert len(patched.patches) == 1
    assert not model.patches


def test_the_preview_shows_the_latents_colours(hosts):
    (model, _, _), _ = hosts
    latents = model.get_model_object("latent_format")
    assert latents.spacial_downscale_ratio == 4
    assert latents.latent_rgb_factors == [[0.1, 0.2, 0.3]] * 4


def test_another_kind_of_file_is_refused_by_name(comfy, tmp_path):
    from stillmotion.model_patches.comfy_host.pocket import load_pocket

    path = tmp_path / "motion.safetensors"
    checkpoint.save(path, system="something", config={}, weights={TOKEN_IDS: torch.zeros(1)})
    with pytest.raises(CheckpointError, match="something"):
        load_pocket(path)
