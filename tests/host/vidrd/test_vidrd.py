"""The VidRD model on a real ComfyUI MODEL: the same numbers as diffusers, clean removal, clear errors."""

import logging

import pytest
import torch
from safetensors.torch import load_file

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel
from stillmotion.model_patches.vidrd.config import VidrdConfig
from stillmotion.model_patches.vidrd.model import VidrdModel, is_temporal

FRAMES = 4
SIZES = {"block_channels": (32, 64), "attention": (False, True), "heads": (4, 4), "layers_per_block": 1}
SIZES |= {"context_dim": 32}  # of conftest's tiny_sd


def random_model(seed=1, *, scale=0.1, **changes):
    torch.manual_seed(seed)
    model = VidrdModel(VidrdConfig(**{**SIZES, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


@pytest.fixture
def motion_file(weight_file):
    """motion_file(seed=1, scale=0.1, dtype=..., **config) -> the path of a StillMotion file."""

    def write(seed=1, *, scale=0.1, dtype=torch.float32, **changes):
        return weight_file("vidrd", random_model(seed, scale=scale, **changes), dtype)

    return write


def close(a, b, share=1e-4):
    """Equal up to a relative error, because random networks have no natural scale."""
    return bool((a - b).abs().max() <= share * b.abs().max())


def fresh(**changes):
    return {"scale": 0.0, "spatial": False, "embedding": "branch", **changes}


def test_a_fresh_branch_model_changes_no_bit(tiny_sd, patched, run_sampler):
    still = run_sampler(tiny_sd, frames=FRAMES)
    assert torch.equal(run_sampler(patched(**fresh()), frames=FRAMES), still)
    assert not torch.equal(run_sampler(patched(**fresh(embedding="stream")), frames=FRAMES), still)


@pytest.mark.slow
def test_runs_leave_nothing_behind_and_the_base_is_restored(tiny_sd, patched, run_sampler):
    weights = {k: v.clone() for k, v in tiny_sd.model.state_dict().items()}
    before = run_sampler(tiny_sd, frames=FRAMES)
    a, b = patched(seed=1), patched(seed=2)
    first, second, again = (run_sampler(model, frames=FRAMES) for model in (a, b, a))
    assert torch.equal(first, again)
    assert not close(first, second, 0.01)
    assert not close(first, before, 0.01)
    assert torch.equal(run_sampler(tiny_sd, frames=FRAMES), before)
    assert all(torch.equal(tiny_sd.model.state_dict()[k], v) for k, v in weights.items())
    assert tiny_sd.model_options == {"transformer_options": {}}
    assert tiny_sd.patches == {}
    assert not [key for key in a.model_options["transformer_options"] if "stillmotion" in str(key)]


def test_the_spatial_strength_goes_from_the_base_to_the_file(tiny_sd, patched, motion_file, run_sampler):
    path = motion_file()
    off = {"strength": 0.0, "spatial": 0.0}
    assert torch.equal(run_sampler(patched(file=path, options=off)), run_sampler(tiny_sd))
    whole = run_sampler(patched(file=path, options={"strength": 0.0}), frames=FRAMES, steps=1)
    half = run_sampler(patched(file=path, options={"strength": 0.0, "spatial": 0.5}), frames=FRAMES, steps=1)
    still = run_sampler(tiny_sd, frames=FRAMES, steps=1)
    assert not close(whole, still, 0.01)
    assert not close(half, still, 0.01)
    assert not close(half, whole, 0.01)


def test_the_weights_under_the_patch_are_those_of_the_file(tiny_sd, patched, motion_file):
    from comfy import model_management

    path = motion_file()
    model = patched(file=path)
    model_management.load_models_gpu([model])
    model_weights, file_weights = tiny_sd.model.state_dict(), load_file(path)
    name = "transformer_blocks.0.attn2.to_k.weight"
    torch.testing.assert_close(
        model_weights[f"diffusion_model.input_blocks.3.1.{name}"], file_weights[f"down_blocks.1.attentions.0.{name}"]
    )
    torch.testing.assert_close(
        model_weights[f"diffusion_model.middle_block.1.{name}"], file_weights[f"mid_block.attentions.0.{name}"]
    )


def test_a_lora_adds_to_the_fine_tuned_weights_in_either_order(tiny_sd, patched, motion_file, run_sampler):
    path, key = motion_file(), "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    delta = torch.randn(64, 64, generator=torch.Generator().manual_seed(4)) * 0.1
    first = tiny_sd.clone()
    first.add_patches({key: (delta,)}, 1.0)
    lora_first = patched(file=path, model=first)
    lora_last = patched(file=path)
    plain = run_sampler(lora_last, frames=FRAMES)
    lora_last.add_patches({key: (delta,)}, 1.0)
    results = [run_sampler(model, frames=FRAMES) for model in (lora_first, lora_last)]
    assert close(*results)
    assert not close(results[0], plain, 1e-3)


@pytest.mark.slow
def test_several_videos_in_one_batch_equal_separate_runs(patched, run_sampler):
    model = patched()
    noise = torch.randn(3 * FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    together = run_sampler(model, latent=torch.zeros_like(noise), noise=noise)
    for clip in torch.arange(3 * FRAMES).chunk(3):
        alone = run_sampler(model, latent=torch.zeros_like(noise[clip]), noise=noise[clip])
        assert close(together[clip], alone, 1e-3)


def test_it_adds_to_a_motion_model_on_the_same_model(tiny_sd, patched, motion_file, run_sampler, tmp_path):
    """Both kinds of slots follow the same layers, and the order of applying does not matter for the slots."""
    torch.manual_seed(0)
    motion = MotionModel(MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, max_frames=8))
    with torch.no_grad():
        for parameter in motion.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    checkpoint.save(
        tmp_path / "m.safetensors", system="motion", config=motion.config.to_dict(), weights=motion.state_dict()
    )
    path = motion_file()
    alone, other = patched(file=path), patched(file=tmp_path / "m.safetensors")
    both = patched(file=tmp_path / "m.safetensors", model=alone)
    results = [run_sampler(model, frames=FRAMES) for model in (alone, other, both)]
    assert not any(close(results[2], result, 0.01) for result in results[:2])


def test_a_patch_of_somebody_else_inside_the_transformer_is_seen(tiny_sd, patched, motion_file, run_sampler):
    """A patch that is set after ours still runs before it, as if it had been set first."""

    def shift(x, options):
        return x + 0.5

    path = motion_file()
    before = tiny_sd.clone()
    before.set_model_patch(shift, "middle_patch")
    one, other = patched(file=path, model=before), patched(file=path)
    other.set_model_patch(shift, "middle_patch")
    assert torch.equal(run_sampler(one, frames=FRAMES), run_sampler(other, frames=FRAMES))
    assert not close(run_sampler(one, frames=FRAMES), run_sampler(patched(file=path), frames=FRAMES), 0.01)


def test_context_windows_decide_the_frames(patched, windowed, run_sampler):
    wide, narrow = patched(frames=8), windowed(patched(frames=8), 4)
    assert not close(run_sampler(wide, frames=8), run_sampler(narrow, frames=8), 0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_files_are_close_to_full_ones(patched, motion_file, run_sampler, dtype):
    full, half = patched(), patched(dtype=dtype)
    assert close(run_sampler(half, frames=FRAMES, steps=1), run_sampler(full, frames=FRAMES, steps=1), 0.1)


def test_one_frame_passes_through_and_a_batch_that_is_not_clips_is_refused(tiny_sd, patched, run_sampler, caplog):
    with caplog.at_level(logging.WARNING):
        single = patched(frames=1)
    assert "a clip of 1 frame has no motion" in caplog.text
    assert torch.equal(run_sampler(single, frames=3), run_sampler(tiny_sd, frames=3))
    with pytest.raises(ValueError, match="a batch of 6 images cannot be divided into clips of 4 frames"):
        run_sampler(patched(), frames=6)


def test_a_layer_that_is_never_called_is_an_error(comfy, tiny_sd, patched, run_sampler):
    from comfy.ldm.modules.attention import SpatialTransformer

    def handler(layer, x, emb, context, options, *_):
        return layer(x, context, options)

    crowded = tiny_sd.clone()
    crowded.set_model_forward_timestep_embed_patch((SpatialTransformer, handler))
    with pytest.raises(RuntimeError, match=r"4 of its 12 modules were never run \(first: down block 1, layer 0, after"):
        run_sampler(patched(model=crowded), frames=FRAMES)


@pytest.mark.slow
def test_other_bases_are_refused_with_the_difference(comfy, tiny_wan, patched):
    with pytest.raises(ValueError, match="this MODEL is WAN21_T2V, whose network is a WanModel"):
        patched(model=tiny_wan)
    with pytest.raises(ValueError, match="it has a layer of 96 channels at down block 1, layer 0"):
        patched(block_channels=(32, 96))
    with pytest.raises(
        ValueError, match="it has a layer of 32 channels at down block 0, layer 0, after its cross-attention"
    ):
        patched(attention=(True, True))
    with pytest.raises(ValueError, match=r"takes text of width 48, but this MODEL is SD15 with 32"):
        patched(context_dim=48)


@torch.no_grad()
def test_both_hosts_give_the_same_eps(tiny_sd, patched, motion_file, network_output):
    """One file in ComfyUI's U-Net and in diffusers': temporal layers, fine-tuned blocks, one frame."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from stillmotion.model_patches.diffusers_host.vidrd import attach
    from stillmotion.model_patches.ldm_names import rename, unet_prefixes

    path = motion_file(scale=0.05)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,  # in spite of diffusers' name: the number of heads, which is 8 in ComfyUI's SD15
        sample_size=8,
    ).eval()
    weights = tiny_sd.model.diffusion_model.state_dict()
    unet.load_state_dict(rename(weights, unet_prefixes(2, 1, (False, True))))
    file = checkpoint.load(path, expect="vidrd")
    model = VidrdModel(VidrdConfig.from_dict(file.config)).eval()
    model.load_state_dict(file.weights)
    generator = torch.Generator().manual_seed(5)
    x, t = torch.randn(2 * FRAMES, 4, 6, 10, generator=generator), torch.full((2 * FRAMES,), 300)
    context = torch.randn(1, 77, 32, generator=generator).repeat(2 * FRAMES, 1, 1)
    still = unet(x, t, context).sample
    handle = attach(unet, model)
    handle.frames = FRAMES
    reference = unet(x, t, context).sample
    output = network_output(patched(file=path), x, t, context)
    assert (output - reference).abs().max() < 1e-4
    assert (still - reference).abs().max() > 0.01
    handle.strength = 0.5
    output = network_output(patched(file=path, options={"strength": 0.5}), x, t, context)
    assert (output - unet(x, t, context).sample).abs().max() < 1e-4


def test_the_temporal_weights_alone_are_the_additional_model(comfy, motion_file):
    """Otherwise the fine-tuned blocks would use memory twice."""
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    loaded = load_motion(motion_file())
    assert all(is_temporal(k) for k in loaded.patcher.model.state_dict())
    assert loaded.spatial
    assert not any(is_temporal(k) for k in loaded.spatial)
    assert loaded.patcher.cached_patcher_init is not None
    again = loaded.patcher.cached_patcher_init[0](*loaded.patcher.cached_patcher_init[1], disable_dynamic=True)
    assert again.model.state_dict().keys() == loaded.patcher.model.state_dict().keys()


def test_memory_management_that_makes_weights_late_still_loads_them(comfy, motion_file, monkeypatch):
    """With dynamic memory, ComfyUI's Linear has no weight until it is loaded."""
    import comfy.memory_management

    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    path = motion_file()
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    weights = load_motion(path).patcher.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in load_file(path).items() if is_temporal(k))
