"""AnimateDiff v1: the image U-Net's GroupNorms take their statistics over all frames of a clip."""

import copy
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import nn

from stillmotion.model_patches import checkpoint

from .test_motion import FRAMES, SIZES, close, conditioning, motion_file, noise_of  # noqa: F401  the fixture of the files

V1 = {"image_norm": "per_clip"}


class VolumeNorm(nn.Module):
    """An independent reference: torch's group_norm on (clips, c, f, h, w), as AnimateDiff's U-Net has its features."""

    def __init__(self, norm, frames):
        super().__init__()
        self.norm, self.frames = norm, frames

    def forward(self, x):
        volume = rearrange(x, "(b f) c h w -> b c f h w", f=self.frames)
        norm = self.norm
        volume = nn.functional.group_norm(volume, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return rearrange(volume, "b c f h w -> (b f) c h w")


def reference_unet(unet, frames):
    """A copy of a U-Net with 5-D norms in its ResBlocks and at its output; those of the transformers stay."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    unet = copy.deepcopy(unet)
    for block in [module for module in unet.modules() if isinstance(module, ResBlock)]:
        for layers in (block.in_layers, block.out_layers):
            layers[0] = VolumeNorm(layers[0], frames)
    unet.out[0] = VolumeNorm(unet.out[0], frames)
    return unet


@torch.no_grad()
@pytest.mark.parametrize("clips", [1, 3])
def test_the_unet_equals_a_reference_in_five_dimensions(tiny_sd, patched, network_output, clips):
    batch = clips * FRAMES
    x, t = noise_of(batch, height=6, width=10), torch.full((batch,), 300)
    x = x * torch.linspace(0.5, 2, batch).view(-1, 1, 1, 1)
    context = conditioning(1)[0][0].repeat(batch, 1, 1)
    output = network_output(patched(scale=0.0, **V1), x, t, context)
    expected = reference_unet(tiny_sd.model.diffusion_model, FRAMES)(x, t, context)
    per_frame = tiny_sd.model.diffusion_model(x, t, context)
    assert (output - expected).abs().max() < 1e-5
    assert (per_frame - expected).abs().max() > 0.01


def test_later_versions_normalise_every_frame(tiny_sd, patched, run_sampler):
    assert torch.equal(run_sampler(patched(scale=0.0), frames=FRAMES), run_sampler(tiny_sd, frames=FRAMES))
    assert not close(run_sampler(patched(scale=0.0, **V1), frames=FRAMES), run_sampler(tiny_sd, frames=FRAMES), 0.01)


def test_several_clips_in_one_batch_equal_separate_runs(patched, run_sampler):
    model, noise = patched(**V1), noise_of(3 * FRAMES)
    together = run_sampler(model, latent=torch.zeros_like(noise), noise=noise)
    for clip in torch.arange(3 * FRAMES).chunk(3):
        assert close(together[clip], run_sampler(model, latent=torch.zeros_like(noise[clip]), noise=noise[clip]))


@pytest.mark.slow
def test_a_context_window_is_a_clip(patched, run_sampler, windowed):
    """Windows of 4 on 4 frames are one clip; the statistics of longer batches are those of each window."""
    one = run_sampler(patched(**V1), frames=FRAMES)
    assert torch.equal(run_sampler(windowed(patched(**V1), FRAMES), frames=FRAMES), one)
    long, still = patched(frames=8, scale=0.0, **V1), patched(frames=8, scale=0.0)
    assert not close(run_sampler(windowed(long, 4), frames=8), run_sampler(windowed(still, 4), frames=8), 0.01)
    assert not close(run_sampler(windowed(long, 4), frames=8), run_sampler(long, frames=8), 0.01)


@pytest.mark.parametrize(("start", "end", "changes"), [(0.0, 0.5, True), (0.5, 1.0, True), (1.0, 1.0, False)])
def test_outside_its_part_of_the_schedule_frames_are_normalised_alone(
    tiny_sd, patched, run_sampler, start, end, changes
):
    part = patched(scale=0.0, options={"start_percent": start, "end_percent": end}, **V1)
    result, still = run_sampler(part, frames=FRAMES), run_sampler(tiny_sd, frames=FRAMES)
    assert close(result, still, 0.001) is not changes
    assert not close(result, run_sampler(patched(scale=0.0, **V1), frames=FRAMES), 0.001)


def test_no_strength_is_the_image_model_and_nothing_is_left_on_its_norms(tiny_sd, patched, run_sampler):
    still = run_sampler(tiny_sd, frames=FRAMES)
    assert torch.equal(run_sampler(patched(options={"strength": 0.0}, **V1), frames=FRAMES), still)
    run_sampler(patched(**V1), frames=FRAMES)
    assert torch.equal(run_sampler(tiny_sd, frames=FRAMES), still)
    norms: list[Any] = [m for m in tiny_sd.model.diffusion_model.modules() if isinstance(m, nn.GroupNorm)]
    assert not any(norm._forward_hooks or norm._forward_pre_hooks for norm in norms)


def test_a_lora_and_weights_that_are_cast_at_every_call_work_with_it(comfy, tiny_sd, patched, run_sampler):
    name = "diffusion_model.input_blocks.1.0.in_layers.0.weight"
    lora = patched(**V1)
    shape = tiny_sd.model.state_dict()[name].shape
    lora.add_patches({name: ("diff", (torch.linspace(-1, 1, shape[0]),))}, 1.0)
    assert not close(run_sampler(lora, frames=FRAMES), run_sampler(patched(**V1), frames=FRAMES), 0.01)


@torch.no_grad()
def test_both_hosts_give_the_same_eps(tiny_sd, patched, motion_file, network_output):  # noqa: F811
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from stillmotion.model_patches.core.config import MotionConfig
    from stillmotion.model_patches.core.temporal import MotionModel
    from stillmotion.model_patches.diffusers_host.motion import attach
    from stillmotion.model_patches.ldm_names import rename, unet_prefixes

    path = motion_file(**V1)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        sample_size=8,
    ).eval()
    unet.load_state_dict(rename(tiny_sd.model.diffusion_model.state_dict(), unet_prefixes(2, 1, (False, True))))
    file = checkpoint.load(path)
    motion = MotionModel(MotionConfig.from_dict(file.config))
    motion.load_state_dict(file.weights)
    x, t = noise_of(2 * FRAMES, height=6, width=10), torch.full((2 * FRAMES,), 300)
    context = conditioning(1)[0][0].repeat(2 * FRAMES, 1, 1)
    still = unet(x, t, context).sample
    handle = attach(unet, motion)
    handle.frames = FRAMES
    reference = unet(x, t, context).sample
    output = network_output(patched(file=path), x, t, context)
    assert (output - reference).abs().max() < 1e-4
    handle.frames = 1
    assert torch.equal(unet(x, t, context).sample, still)
    handle.remove()
    assert torch.equal(unet(x, t, context).sample, still)
