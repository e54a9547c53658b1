"""The layers of Stable Diffusion's U-Net compute the same as those of diffusers, with the same weights."""

import math

import pytest
import torch
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from stillmotion.model_patches.core.spatial import (
    Block,
    ResBlock,
    SpatialTransformer,
    TimeEmbedding,
    timestep_features,
    usual_groups,
)


def random_weights(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1])
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize("out", [64, 32])
def test_a_resblock_is_that_of_diffusers(out):
    reference = random_weights(ResnetBlock2D(in_channels=64, out_channels=out, temb_channels=48, eps=1e-5))
    block = ResBlock(64, out, 48, nn)
    block.load_state_dict(reference.state_dict())
    x, time = torch.randn(2, 64, 5, 7), torch.randn(2, 48)
    torch.testing.assert_close(block(x, time), reference(x, time))
    assert (block.conv_shortcut is None) == (out == 64)


@torch.no_grad()
@pytest.mark.parametrize("linear", [True, False])
def test_a_transformer_is_that_of_diffusers(linear):
    size = {"in_channels": 64, "cross_attention_dim": 24, "use_linear_projection": linear}
    reference = random_weights(Transformer2DModel(num_attention_heads=4, attention_head_dim=16, **size))
    transformer = SpatialTransformer(64, 24, heads=4, linear=linear)
    transformer.load_state_dict(reference.state_dict())
    x, context = torch.randn(2, 64, 3, 5), torch.randn(2, 6, 24)
    (expected,) = reference(x, encoder_hidden_states=context, return_dict=False)
    torch.testing.assert_close(transformer(x, context), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_time_embedding_is_that_of_diffusers():
    t = torch.tensor([0, 1, 500, 999])
    features = get_timestep_embedding(t, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_features(t, 32), features)
    reference = random_weights(TimestepEmbedding(32, 128))
    embedding = TimeEmbedding(32, nn)
    embedding.load_state_dict(reference.state_dict())
    torch.testing.assert_close(embedding(t, torch.float32), reference(features))


class Scaled(nn.Module):
    """A temporal module with a known update."""

    def update(self, tokens: torch.Tensor, frames: int, _options: object = None) -> torch.Tensor:
        return tokens * frames


@torch.no_grad()
def test_the_temporal_module_runs_between_cross_attention_and_feed_forward():
    block = Block(32, 16, 4)
    x, context = torch.randn(6, 5, 32), torch.randn(6, 3, 16)
    attended = x + block.attn1(block.norm1(x))
    attended = attended + block.attn2(block.norm2(attended), context=context)
    expected = 4 * attended + block.ff(block.norm3(4 * attended))
    torch.testing.assert_close(block(x, context, 3, Scaled()), expected)
    torch.testing.assert_close(block(x, context, 3), block(x, context))


@torch.no_grad()
@pytest.mark.parametrize("layer", [Block(32, 16, 4), SpatialTransformer(32, 16, heads=4, linear=True)])
def test_without_a_number_of_frames_every_image_is_a_clip_of_its_own(layer):
    x, context = torch.randn(6, 5, 32), torch.randn(6, 3, 16)
    x = x if isinstance(layer, Block) else x.transpose(1, 2).unflatten(2, (1, 5))
    assert torch.equal(layer(x, context, temporal=Scaled()), layer(x, context, 1, Scaled()))
    assert not torch.allclose(layer(x, context, temporal=Scaled()), layer(x, context, 2, Scaled()))


def test_the_feed_forward_is_four_times_as_wide_by_default():
    assert Block(32, 16, 4).ff.net[2].in_features == 128
    assert Block(32, 16, 4, widening=2).ff.net[2].in_features == 64


def test_self_attention_has_the_keys_of_its_own_width():
    block = Block(32, 16, 4)
    assert block.attn1.to_k.in_features == 32
    assert block.attn2.to_v.in_features == 16
    assert Block(32, 32, 4).attn2.to_k.in_features == 32


def test_groups_do_not_depend_on_the_channels():
    assert usual_groups(64) == usual_groups(1280) == 32
