"""Properties of HARIVO's mapping network, frame-wise tokens and projection head."""

import json
from typing import Any

import pytest
import torch

from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.harivo.config import HarivoConfig, MappingConfig, TokenConfig
from stillmotion.model_patches.harivo.mapping import MappingNetwork
from stillmotion.model_patches.harivo.model import HarivoModel
from stillmotion.model_patches.harivo.projection import ProjectionHead
from stillmotion.model_patches.harivo.tokens import FrameTokens, append, at_frames, softened

FRAMES = 4
MAPPING = MappingConfig(width=16, heads=4, max_frames=8)
TOKENS = TokenConfig(context_dim=16, context_length=7, frames=6)


def silent(module):
    """Weights without a gradient after a backward pass."""
    return [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def randomised(module) -> Any:
    """Weights as after training."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def latents(clips=2, frames=FRAMES, height=3, width=5):
    return torch.randn(clips * frames, 4, height, width, generator=torch.Generator().manual_seed(1))


def prompt_tokens(prompts=2, length=7, seed=2):
    return torch.randn(prompts, length, 16, generator=torch.Generator().manual_seed(seed))


def test_a_fresh_mapping_network_is_the_identity_bit_for_bit_and_learns():
    mapping: Any = MappingNetwork(MAPPING)
    x = latents()
    y = mapping(x, FRAMES)
    assert torch.equal(y, x)
    (y - 1).square().mean().backward()
    assert mapping.proj_out.weight.grad.abs().sum() > 0


def test_every_weight_of_the_mapping_network_matters():
    mapping = randomised(MappingNetwork(MAPPING))
    mapping(latents(), FRAMES).square().mean().backward()
    assert silent(mapping) == []


def test_the_mapping_network_sees_all_frames_of_a_pixels_neighbourhood_and_no_further_pixel():
    x = latents(clips=2, height=5, width=5).requires_grad_()
    mapping = randomised(MappingNetwork(MAPPING))
    mapping.update(x, FRAMES)[1, :, 2, 2].sum().backward()
    assert x.grad is not None
    reach = x.grad.abs().sum(1) > 0  # (b f, h, w)
    assert reach[:FRAMES, 1:4, 1:4].all()
    reach[:FRAMES, 1:4, 1:4] = False
    assert not reach.any()


def test_clips_of_a_batch_are_mapped_on_their_own():
    mapping, x = randomised(MappingNetwork(MAPPING)), latents(clips=3)
    together = mapping(x, FRAMES)
    for clip, mapped in zip(x.split(FRAMES), together.split(FRAMES), strict=True):
        torch.testing.assert_close(mapping(clip, FRAMES), mapped)
    assert together.shape == x.shape


def test_the_mapping_network_equals_its_formula_written_with_loops():
    """An independent reference: a convolution per frame triple, softmax attention per pixel and head."""
    mapping, x = randomised(MappingNetwork(MAPPING)).double(), latents(clips=1, height=2, width=2).double()
    weight, bias = mapping.conv.weight, mapping.conv.bias
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    nothing = torch.zeros_like(padded[0])
    table = mapping.attention.pos_encoder.pe[0].double()
    for row in range(2):
        for column in range(2):
            z = []
            for f in range(FRAMES):
                near = [padded[g] if 0 <= g < FRAMES else nothing for g in (f - 1, f, f + 1)]
                cube = torch.stack([n[:, row : row + 3, column : column + 3] for n in near], dim=1)
                z.append((weight * cube).sum(dim=(1, 2, 3, 4)) + bias)
            z = torch.stack(z)
            tokens = mapping.norm(z) + table[:FRAMES]
            q, k, v = (
                tokens @ m.weight.T for m in (mapping.attention.to_q, mapping.attention.to_k, mapping.attention.to_v)
            )
            heads = [
                ((q[:, s] @ k[:, s].T) / 2).softmax(-1) @ v[:, s]  # 4 channels per head
                for s in (slice(4 * i, 4 * i + 4) for i in range(4))
            ]
            update = mapping.proj_out(z + mapping.attention.to_out[0](torch.cat(heads, dim=1)))
            torch.testing.assert_close(mapping.update(x, FRAMES)[:, :, row, column], update)


def test_the_mapping_network_refuses_latents_that_do_not_fit():
    mapping = MappingNetwork(MAPPING)
    with pytest.raises(ValueError, match=r"a clip has 16 frames.*8"):
        mapping(latents(clips=1, frames=16), 16)
    with pytest.raises(ValueError, match="8 images cannot be divided into clips of 3 frames"):
        mapping(latents(), 3)
    with pytest.raises(ValueError, match="built for latents with 4 channels, but these have 9"):
        mapping(torch.zeros(4, 9, 2, 2), 4)


def test_tokens_of_a_frame_equal_their_formula():
    generator, context = randomised(FrameTokens(TOKENS)), prompt_tokens()
    hidden = context
    for layer in generator.layers:
        hidden = hidden @ layer.weight.T + layer.bias
        hidden = hidden * torch.sigmoid(hidden)
    rows = torch.einsum("ol,bld->bod", generator.conv.weight[:, :, 0], hidden) + generator.conv.bias[:, None]
    tokens = generator(context, 6)
    assert tokens.shape == (2, 6, 3, 16)
    for frame in range(6):
        for n in range(3):
            torch.testing.assert_close(tokens[:, frame, n], rows[:, 3 * frame + n])


def test_a_kernel_of_three_keeps_the_width():
    assert FrameTokens(TokenConfig(**TOKENS.to_dict() | {"kernel": 3}))(prompt_tokens(), 6).shape == (2, 6, 3, 16)


def test_prompts_do_not_mix_and_every_weight_matters():
    generator, context = randomised(FrameTokens(TOKENS)), prompt_tokens()
    torch.testing.assert_close(generator(context, 6)[1:], generator(context[1:], 6))
    generator(context, 6).square().mean().backward()
    assert silent(generator) == []


@pytest.mark.parametrize("frames", [1, 2, 5, 6, 11, 40])
def test_other_frame_counts_lie_on_the_line_between_the_trained_frames(frames):
    tokens = randomised(FrameTokens(TOKENS))(prompt_tokens(), 6)
    other = at_frames(tokens, frames)
    assert other.shape == (2, frames, 3, 16)
    torch.testing.assert_close(other[:, 0], tokens[:, 0])
    for i in range(frames) if frames > 1 else ():
        place = i * 5 / (frames - 1)
        low = min(int(place), 4)
        between = tokens[:, low] + (place - low) * (tokens[:, low + 1] - tokens[:, low])
        torch.testing.assert_close(other[:, i], between, atol=1e-5, rtol=1e-4)


def test_every_chunk_of_a_long_prompt_gets_its_own_tokens_and_other_tokens_get_none():
    generator = randomised(FrameTokens(TOKENS))
    one, two = prompt_tokens(seed=3), prompt_tokens(seed=4)
    both = generator(torch.cat([one, two], dim=1), FRAMES)
    assert both.shape == (2, FRAMES, 6, 16)
    torch.testing.assert_close(both[:, :, :3], generator(one, FRAMES))
    torch.testing.assert_close(both[:, :, 3:], generator(two, FRAMES))
    picture = torch.cat([one, prompt_tokens(length=4, seed=5)], dim=1)
    torch.testing.assert_close(generator(picture, FRAMES), generator(one, FRAMES))


def test_a_prompt_that_was_repeated_to_the_length_of_another_attends_to_the_same():
    """ComfyUI repeats the shorter of two prompts; that must not change attention over text and tokens."""
    generator, context = randomised(FrameTokens(TOKENS)), prompt_tokens(prompts=1)
    query = torch.randn(1, 1, FRAMES, 16, generator=torch.Generator().manual_seed(6)).transpose(1, 2)

    def attended(text):
        keys = append(text.expand(FRAMES, -1, -1), generator(text, FRAMES))
        return torch.nn.functional.scaled_dot_product_attention(query[0], keys, keys)

    torch.testing.assert_close(attended(context.repeat(1, 2, 1)), attended(context))


def test_strength_goes_from_copies_of_the_last_word_to_the_trained_tokens():
    context = prompt_tokens()
    tokens = randomised(FrameTokens(TOKENS))(context, FRAMES)
    assert softened(tokens, context, 1.0) is tokens
    last = context[:, None, -1:].expand(-1, FRAMES, 3, -1)
    torch.testing.assert_close(softened(tokens, context, 0.0), last)
    torch.testing.assert_close(softened(tokens, context, 0.5), (last + tokens) / 2)


def test_append_gives_each_frame_its_own_tokens_behind_the_text():
    context = prompt_tokens().repeat_interleave(FRAMES, dim=0)
    tokens = randomised(FrameTokens(TOKENS))(prompt_tokens(), FRAMES)
    long = append(context, tokens)
    assert long.shape == (2 * FRAMES, 10, 16)
    assert torch.equal(long[:, :7], context)
    assert torch.equal(long[FRAMES + 2, 7:], tokens[1, 2])


def test_tokens_refuse_another_text_encoder_by_both_sizes():
    generator = FrameTokens(TOKENS)
    with pytest.raises(ValueError, match="trained on text tokens of width 16, but this prompt has width 32"):
        generator(torch.zeros(1, 7, 32), 4)
    with pytest.raises(ValueError, match="a prompt of 5 tokens is shorter than the 7"):
        generator(torch.zeros(1, 5, 16), 4)


def test_the_projection_head_has_the_papers_widths_and_one_latent_size():
    head = ProjectionHead((8, 2, 3))
    assert [tuple(p.shape) for p in head.parameters() if p.ndim == 2] == [(8, 48), (8, 8), (8, 8)]
    assert head(torch.randn(5, 8, 2, 3)).shape == (5, 8)
    with pytest.raises(ValueError, match=r"built for middle features of size \(8, 2, 3\).*these are \(8, 4, 4\)"):
        head(torch.randn(5, 8, 4, 4))


MOTION = MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, max_frames=8)
WHOLE = HarivoConfig(motion=MOTION, mapping=MAPPING, tokens=TOKENS)


def test_a_config_survives_its_file():
    for config in (WHOLE, HarivoConfig(motion=MOTION)):
        assert HarivoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "HARIVO config: unknown setting colour"),
        ({"mapping": {"colour": 1}}, "mapping config: unknown setting colour; known are channels, width"),
        ({"tokens": {"context_dim": 4, "colour": 1}}, "token config: unknown setting colour"),
        ({"motion": MOTION.to_dict() | {"colour": 1}}, "motion config: unknown setting colour"),
        ({"mapping": {"width": 30}}, "8 heads do not divide a width of 30"),
        ({"mapping": {"width": 9, "heads": 3}}, "3 heads do not divide a width of 9, or the width is odd"),
        ({"mapping": {"max_frames": 4}}, "max_frames is 8 for the temporal layers, but only 4 for the mapping network"),
        ({"mapping": {"channels": 0}}, "channels is 0; it must be a whole number of at least 1"),
        ({"tokens": {"context_dim": 4, "kernel": 2}}, "kernel is 2; choose 1 or 3"),
        ({"tokens": {"context_dim": 4, "tokens": 0}}, "tokens is 0"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        HarivoConfig.from_dict(WHOLE.to_dict() | change)


def test_a_config_without_temporal_layers_is_named():
    with pytest.raises(ValueError, match="HARIVO config: motion is missing"):
        HarivoConfig.from_dict({"mapping": None})


def test_the_state_dict_is_the_file():
    keys = HarivoModel(WHOLE).state_dict()
    assert {key.split(".")[0] for key in keys} == {"temporal", "mapping", "tokens"}
    plain = HarivoModel(HarivoConfig(motion=MOTION))
    assert plain.mapping is None
    assert plain.tokens is None
    assert {key.split(".")[0] for key in plain.state_dict()} == {"temporal"}
