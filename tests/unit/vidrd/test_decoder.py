"""The temporal-aware decoder as a stream: the same frames as for the whole clip, with constant memory."""

import pytest
import torch
from torch import nn

from stillmotion.model_patches.vidrd.config import DecoderConfig
from stillmotion.model_patches.vidrd.decoder import TemporalDecoder, decode, stream

CONFIG = DecoderConfig(block_channels=(32, 32), layers_per_block=1, conv_layers=3)  # 4 Temp-Convs, 12 frames of delay


def parts_of(config=CONFIG):
    """Random Temp-Convs and five stages of a decoder that works on each frame alone."""
    torch.manual_seed(0)
    decoder = TemporalDecoder(config).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    stages: list = [nn.Conv2d(4, 32, 3, padding=1)]
    stages += [nn.Sequential(nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1)) for _ in range(3)]
    stages += [nn.Conv2d(32, 3, 3, padding=1)]
    return stages, decoder.layers()


def latents(frames):
    return torch.randn(frames, 4, 4, 6, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3, 5, 13, 40])
@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_a_stream_equals_the_clip_at_once(frames, size):
    stages, layers = parts_of()
    whole = decode(stages, layers, latents(frames), frames)
    streamed = torch.cat(list(stream(stages, layers, latents(frames).split(size))))
    assert streamed.shape == whole.shape
    assert (streamed - whole).abs().max() < 1e-5
    if frames > 1:
        still = decode(stages, [TemporalDecoder(CONFIG).eval().layers()[0]] * 4, latents(frames), frames)
        assert (still - whole).abs().max() > 0.01


@torch.no_grad()
def test_no_stage_ever_sees_more_frames_than_a_part_or_a_halo():
    """Constant memory: neither the input of a stage nor the buffered frames grow with the length."""
    stages, layers = parts_of()
    sizes, read, late = [], [0], [0]

    def counted(stage):
        def run(x):
            sizes.append(len(x))
            return stage(x)

        return run

    def source(frames):
        for part in latents(frames).split(4):
            read[0] += len(part)
            yield part

    largest = []
    for frames in (60, 240):
        sizes.clear()
        read[0], out = 0, 0
        for images in stream([counted(stage) for stage in stages], layers, source(frames)):
            out += len(images)
            late.append(read[0] - out)
        assert out == frames
        largest.append(max(sizes))
    assert largest == [4, 4]
    assert max(late) == sum(layer.radius for layer in layers)


@torch.no_grad()
def test_a_frame_depends_on_no_more_than_the_receptive_field():
    stages, layers = parts_of()
    x = latents(40)
    other = x.clone()
    other[30] += 1
    change = (decode(stages, layers, x, 40) - decode(stages, layers, other, 40)).abs().flatten(1).amax(1)
    assert (change > 1e-6).nonzero().flatten().tolist() == list(range(18, 40))


def test_statistics_over_the_clip_have_no_stream():
    stages, layers = parts_of(DecoderConfig(block_channels=(32, 32), layers_per_block=1, group_norm="per_clip"))
    with pytest.raises(ValueError, match="cannot decode a stream; decode clip by clip"):
        stream(stages, layers, [latents(3)])


@torch.no_grad()
def test_a_fresh_decoder_changes_no_bit():
    stages, _ = parts_of()
    x = latents(5)
    plain = x
    for stage in stages:
        plain = stage(plain)
    assert torch.equal(decode(stages, TemporalDecoder(CONFIG).layers(), x, 5), plain)
