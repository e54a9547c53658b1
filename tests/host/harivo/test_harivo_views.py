"""The views of HARIVO's parts in ComfyUI: they show what the model computes, and do not change it."""

from typing import Any

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.harivo.config import HarivoConfig, MappingConfig, TokenConfig
from stillmotion.model_patches.harivo.model import HarivoModel

FRAMES, CONTEXT = 4, 32
SIZES = {"block_channels": (32, 64), "layers_per_block": 1, "heads": 4, "max_frames": 8}  # of conftest's tiny_sd


def trained(sizes=SIZES, context=CONTEXT, **changes):
    """A model with weights as after training."""
    torch.manual_seed(1)
    parts: dict[str, Any] = {
        "motion": MotionConfig(**sizes),
        "mapping": MappingConfig(width=16, heads=4, max_frames=32),
        "tokens": TokenConfig(context_dim=context, frames=6),
    }
    model = HarivoModel(HarivoConfig(**parts | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval().requires_grad_(False)


@pytest.fixture
def apply(comfy, tiny_sd, tmp_path):
    """apply(harivo, model=tiny_sd, ...) -> a MODEL with it."""
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    def patch(harivo, model=tiny_sd, frames=FRAMES, **options):
        path = tmp_path / "harivo.safetensors"
        checkpoint.save(path, system="harivo", config=harivo.config.to_dict(), weights=harivo.state_dict())
        return apply_motion(model, load_motion(path), frames=frames, **options)

    return patch


@pytest.fixture
def prompt():
    return [[torch.randn(1, 77, CONTEXT, generator=torch.Generator().manual_seed(3)), {}]]


@pytest.fixture
def latent():
    return {"samples": torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(4))}


def every_cross_attention(model, note):
    """A clone of `model` whose cross-attentions pass q and k to `note`, by another extension point of ComfyUI."""
    clone = model.clone()

    def replaced(q, k, v, options):
        note(q, k, options)
        heads = options["n_heads"]
        parts = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)

    for kind in ("input", "middle", "output"):
        for number in range(12):
            clone.set_model_attn2_replace(replaced, kind, number)
    return clone


@torch.inference_mode()
def test_the_maps_are_the_softmax_of_the_models_own_queries_and_keys(apply, prompt, latent):
    from stillmotion.model_patches.comfy_host.views import token_attention

    maps = []

    def note(q, k, options):
        heads = options["n_heads"]
        q, k = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k))
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1).mean(1)[..., 77:]  # (f, pixels, n)
        h, w = options["activations_shape"][2:]
        small = weights.mT.unflatten(2, (h, w))
        maps.append(torch.nn.functional.interpolate(small, (8, 8), mode="bilinear", align_corners=False))

    watched = every_cross_attention(apply(trained()), note)
    attention = token_attention(watched, prompt, latent, percent=0.4, seed=1)
    assert attention.maps.shape == (FRAMES, 3, 8, 8)
    assert len(maps) == 4
    torch.testing.assert_close(attention.maps, torch.stack(maps).mean(0), rtol=1e-4, atol=1e-6)
    assert attention.maps.sum(1).max() < 1
    assert 0 < attention.timestep < 999


@torch.inference_mode()
def test_a_view_changes_nothing_of_the_model_that_is_sampled(views, apply, prompt, latent, run_sampler):
    patched = apply(trained())
    before = run_sampler(patched, frames=FRAMES)
    options = str(patched.model_options)
    views.FrameTokenAttention.execute(patched, prompt, latent, 0.5)
    views.MappingShift.execute(patched, latent)
    assert str(patched.model_options) == options
    assert torch.equal(run_sampler(patched, frames=FRAMES), before)


@torch.inference_mode()
def test_more_noise_and_another_seed_are_other_maps(apply, prompt, latent):
    from stillmotion.model_patches.comfy_host.views import token_attention

    patched = apply(trained())
    options = ((0.2, 1), (0.8, 1), (0.2, 2), (0.2, 1))
    early, late, other, again = (token_attention(patched, prompt, latent, percent=p, seed=s) for p, s in options)
    assert torch.equal(early.maps, again.maps)
    assert early.timestep > late.timestep
    assert not torch.equal(early.maps, late.maps)
    assert not torch.equal(early.maps, other.maps)


@torch.inference_mode()
def test_the_shift_is_that_of_the_mapping_network_at_its_strength(apply, latent):
    from stillmotion.evaluation.drawing.probes import mapping_shift
    from stillmotion.model_patches.comfy_host.views import mapping_probe

    harivo = trained()
    assert harivo.mapping is not None
    probe = mapping_probe(apply(harivo, mapping=0.5, beta_schedule="linear"), latent)
    x = torch.randn(FRAMES, 4, 8, 8)
    expected = x + 0.5 * harivo.mapping.update(x, FRAMES)
    torch.testing.assert_close(probe["mapping"](x, FRAMES), expected, rtol=1e-5, atol=1e-6)
    shifts = mapping_shift(**probe)
    assert len(shifts) > 15
    assert shifts[-1].timestep > 900
    scaled = latent["samples"] * 0.18215
    assert shifts[0].deviation == pytest.approx(scaled.std().item(), rel=0.05)
    assert shifts[-1].deviation == pytest.approx(1, rel=0.05)


@torch.inference_mode()
@pytest.mark.slow
def test_noise_is_tested_before_and_behind_the_mapping_network(views, apply):
    import importlib

    importlib.import_module("nodes")
    noise = importlib.import_module("comfy_extras.nodes_custom_sampler").Noise_RandomNoise(3)
    empty = {"samples": torch.zeros(20 * FRAMES, 4, 8, 8)}
    _, table = views.NoiseNormality.execute(empty, FRAMES, noise, apply(trained())).result
    rows = [line.split("  ")[0].strip() for line in table.splitlines()[1:3]]
    assert rows == ["noise", "after the mapping"]
    with pytest.raises(
        ValueError, match=r"mapping network: this MODEL has no active mapping;.* mapping_strength above 0"
    ):
        views.NoiseNormality.execute(empty, FRAMES, noise, apply(trained(), mapping=0.0))


@torch.inference_mode()
def test_missing_or_disabled_tokens_cannot_be_shown(views, apply, tiny_sd, prompt, latent):
    for model in (tiny_sd, apply(trained(tokens=None)), apply(trained(), tokens=0.0)):
        with pytest.raises(ValueError, match=r"attention: this MODEL has no active tokens;.* token_strength above 0"):
            views.FrameTokenAttention.execute(model, prompt, latent, 0.5)
    with pytest.raises(ValueError, match="start_percent"):
        views.FrameTokenAttention.execute(apply(trained(), start_percent=0.6), prompt, latent, 0.2)
    short = {"samples": latent["samples"][:3]}
    with pytest.raises(ValueError, match="mapping shift: the batch has 3"):
        views.MappingShift.execute(apply(trained()), short)
    with pytest.raises(ValueError, match="frame token attention: the batch has 3"):
        views.FrameTokenAttention.execute(apply(trained()), prompt, short, 0.5)


@torch.inference_mode()
@pytest.mark.slow
def test_the_pocket_model_shows_its_tokens_and_both_hosts_see_the_same(views, apply, root):
    from stillmotion.model_patches.comfy_host.pocket import load_pocket
    from stillmotion.model_patches.comfy_host.views import token_attention
    from stillmotion.model_patches.diffusers_host import harivo as diffusers_harivo
    from stillmotion.model_patches.diffusers_host import pocket as diffusers_pocket
    from stillmotion.model_patches.diffusers_host import views as diffusers_views

    path = root / "pocket" / "pocket.safetensors"
    model, clip, _ = load_pocket(path)
    sizes = MotionConfig.from_dict(checkpoint.load(root / "pocket" / "motion.safetensors").config).to_dict()
    harivo = trained(sizes=sizes, context=128)
    patched = apply(harivo, model, frames=16, beta_schedule="linear")
    positive = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle moving right"))
    video = {"samples": torch.randn(16, 4, 16, 16)}
    (image,) = views.FrameTokenAttention.execute(patched, positive, video, 0.5).result
    assert image.shape[2] > 1000  # 16 columns
    attention = token_attention(patched, positive, video, percent=0.5, seed=1)

    other = diffusers_pocket.load_pocket(path)
    handle = diffusers_harivo.attach(other.unet, harivo)
    handle.frames = 16
    sigma = patched.get_model_object("model_sampling").percent_to_sigma(0.5)
    noise = torch.randn(video["samples"].shape, generator=torch.Generator().manual_seed(1))
    x = (video["samples"] * 0.18215 + sigma * noise) / (1 + sigma**2) ** 0.5
    context = positive[0][0].expand(16, -1, -1)
    maps = diffusers_views.token_attention(other.unet, x, round(attention.timestep), context)
    torch.testing.assert_close(attention.maps, maps, rtol=0, atol=1e-4)
