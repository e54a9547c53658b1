"""Properties of VidRD's temporal layers, and the sizes that the paper prints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from stillmotion.model_patches.core.slots import Slot
from stillmotion.model_patches.core.temporal import sinusoid
from stillmotion.model_patches.vidrd.config import DecoderConfig, VidrdConfig
from stillmotion.model_patches.vidrd.decoder import TemporalDecoder
from stillmotion.model_patches.vidrd.layers import TemporalAttention, TemporalConv, groups_of
from stillmotion.model_patches.vidrd.model import VidrdModel, is_temporal, places

SD21 = VidrdConfig(
    block_channels=(320, 640, 1280, 1280), attention=(True, True, True, False), heads=(5, 10, 20, 20), context_dim=1024
)
SMALL = VidrdConfig(block_channels=(32, 64), attention=(False, True), heads=(4, 4), layers_per_block=1, context_dim=16)


def randomised(module):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


def conv(channels=32, layers=2, **rules):
    torch.manual_seed(0)
    return randomised(TemporalConv(channels, layers=layers, **rules))


def attention(channels=32, **rules):
    torch.manual_seed(0)
    return randomised(TemporalAttention(channels, heads=4, **rules))


def images(frames=6, channels=32, height=3, width=5):
    return torch.randn(frames, channels, height, width, generator=torch.Generator().manual_seed(2))


def tokens(frames=6, pixels=7, channels=32):
    return torch.randn(frames, pixels, channels, generator=torch.Generator().manual_seed(3))


def millions(state, includes=lambda _: True):
    return sum(v.numel() for k, v in state.items() if includes(k)) / 1e6


def test_the_sizes_are_those_that_the_paper_prints():
    with torch.device("meta"):
        state = VidrdModel(SD21).state_dict()
        decoder = TemporalDecoder(DecoderConfig(block_channels=(128, 256, 512, 512))).state_dict()
    assert millions(state, is_temporal) == pytest.approx(316.49, rel=1e-3)
    assert millions(state) == pytest.approx(565.29, rel=1e-3)
    assert millions(decoder) == pytest.approx(16.41, rel=1e-3)


def test_the_keys_are_those_of_the_golden_list(request):
    with torch.device("meta"):
        state = VidrdModel(SD21).state_dict()
        decoder = TemporalDecoder(DecoderConfig(block_channels=(128, 256, 512, 512))).state_dict()
    for name, weights in (("vidrd", state), ("vidrd_decoder", decoder)):
        lines = "".join(f"{k} {'x'.join(map(str, v.shape))}\n" for k, v in sorted(weights.items()))
        golden = Path(__file__).parents[2] / "golden" / f"keys_{name}.txt"
        if request.config.getoption("--update-golden"):
            golden.write_text(lines, encoding="utf-8")
        assert golden.read_text(encoding="utf-8") == lines


def test_the_spatial_names_and_shapes_are_those_of_diffusers():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    heads: Any = SD21.heads  # diffusers annotates it as a tuple of one
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=SD21.block_channels,
            cross_attention_dim=1024,
            attention_head_dim=heads,
            use_linear_projection=True,
        )
        shapes = {k: v.shape for k, v in VidrdModel(SD21).state_dict().items() if not is_temporal(k)}
    unet_shapes = {k: v.shape for k, v in unet.state_dict().items() if ".transformer_blocks." in k}
    assert shapes == unet_shapes


def test_there_is_a_layer_behind_every_resblock_and_in_every_transformer():
    slots = places(SD21)
    assert sum(slot.place == "resnet" for slot in slots) == 22
    assert sum(slot.place == "attended" for slot in slots) == 16
    modules = VidrdModel(SMALL).modules_by_slot()
    assert list(modules) == list(places(SMALL))
    assert isinstance(modules[Slot("mid", 0, 1, "resnet")], TemporalConv)
    assert isinstance(modules[Slot("up", 0, 1, "attended")], TemporalAttention)
    assert modules[Slot("up", 1, 0, "resnet")].convs[0].num_channels == 32
    assert str(Slot("down", 0, 0, "resnet")) == "down block 0, layer 0, after its ResBlock"
    assert str(Slot("mid", 0, 1, "resnet")) == "mid, after ResBlock 1"
    assert str(Slot("mid", 0, 0, "attended")) == "mid, after its cross-attention"


def test_a_fresh_conv_and_a_fresh_branch_are_the_identity_and_a_fresh_stream_adds_the_embedding():
    x, t = images(), tokens()
    assert torch.equal(TemporalConv(32, layers=4)(x, 3), x)
    assert torch.equal(TemporalAttention(32, heads=4, embedding="branch")(t, 3), t)
    added = TemporalAttention(32, heads=4)(t, 3) - t
    torch.testing.assert_close(added, sinusoid(3, 32).repeat(2, 1)[:, None].expand_as(t), atol=1e-6, rtol=0)


def test_one_frame_passes_through_trained_layers():
    assert torch.equal(conv()(images(), 1), images())
    assert torch.equal(attention()(tokens(), 1), tokens())
    assert not conv().update(images(), 1).any()
    assert not attention().update(tokens(), 1).any()


def test_the_conv_is_the_convolution_over_frames_of_each_pixel():
    """Compared with torch's own one-dimensional convolution."""
    layer, x = conv(layers=1, dropout=0.0), images()
    parts: Any = layer.convs
    norm, convolution = parts[0], parts[3]
    z = F.silu(norm(x.transpose(0, 1)[None]))[0]  # (c, f, h, w)
    lines = z.permute(2, 3, 0, 1).flatten(0, 1)  # (pixels, c, f)
    expected = F.conv1d(lines, convolution.weight[..., 0, 0], convolution.bias, padding=1)
    expected = expected.unflatten(0, x.shape[2:]).permute(3, 2, 0, 1)
    torch.testing.assert_close(layer.update(x, 6), expected, atol=1e-5, rtol=0)


def test_the_conv_reaches_as_many_frames_as_it_has_layers():
    layer = conv(layers=2, group_norm="per_frame")
    x = images(9).requires_grad_()
    layer(x, 9)[4].sum().backward()
    assert x.grad is not None
    reach = x.grad.abs().flatten(1).sum(1) > 1e-6
    assert reach.tolist() == [False, False, True, True, True, True, True, False, False]


@pytest.mark.parametrize("group_norm", ["per_clip", "per_frame"])
def test_clips_in_a_batch_do_not_see_each_other(group_norm):
    layer, x = conv(group_norm=group_norm), images()
    torch.testing.assert_close(layer(x, 3)[3:], layer(x[3:], 3))
    block, t = attention(), tokens()
    torch.testing.assert_close(block(t, 3)[3:], block(t[3:], 3))


def test_attention_mixes_frames_and_not_pixels():
    t = tokens().requires_grad_()
    attention()(t, 6)[2, 1].sum().backward()
    assert t.grad is not None
    reach = t.grad.abs().sum(-1) > 0
    assert reach[:, 1].all()
    assert not reach[:, [0, 2, 3, 4, 5, 6]].any()


def test_the_order_of_frames_matters():
    t, order = tokens(), [2, 0, 5, 3, 1, 4]
    for embedding in ("stream", "branch"):
        block = attention(embedding=embedding)
        assert not torch.allclose(block(t[order], 6), block(t, 6)[order], atol=1e-3)


def test_parts_of_the_pixels_give_the_same_result_as_all_at_once(monkeypatch):
    from stillmotion.model_patches.core import temporal

    block, t = attention(), tokens()
    whole = block(t, 6)
    monkeypatch.setattr(temporal, "CPU_PART", 8 * 6 * 32 * 2)
    torch.testing.assert_close(block(t, 6), whole)


def test_dropout_works_in_training_only():
    torch.manual_seed(0)
    layer = conv(dropout=0.5)
    assert torch.equal(layer(images(), 3), layer(images(), 3))
    layer.train()
    assert not torch.equal(layer(images(), 3), layer(images(), 3))


def test_narrow_layers_get_fewer_groups():
    assert [groups_of(c) for c in (320, 64, 32, 48, 24, 7)] == [32, 32, 32, 16, 8, 1]
    assert conv(channels=24)(images(channels=24), 3).shape == (6, 24, 3, 5)


def test_a_fresh_layer_learns_through_its_zeros():
    """Only the last convolution and the output projection get a gradient in the first step, the others later."""
    torch.manual_seed(0)
    layer, block = TemporalConv(32, layers=2, dropout=0.0), TemporalAttention(32, heads=4)
    (layer(images(), 3).square().mean() + block(tokens(), 3).square().mean()).backward()
    for weight in (layer.last, *block.temp_attn.to_out.parameters()):
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": (4,)}, "heads has 1 entries for 2 down blocks"),
        ({"heads": (4, 5)}, "5 heads do not divide 64 channels"),
        ({"group_norm": "batch"}, "group_norm is 'batch'; choose one of per_frame, per_clip"),
        ({"embedding": "none"}, "embedding is 'none'; choose one of stream, branch"),
        ({"conv_layers": 0}, "conv_layers is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"heads": (4, 0)}, "0 heads do not divide 64 channels"),
        ({"block_channels": ()}, "block_channels is empty"),
        ({"beta_schedule": "linear"}, "needs beta_start and beta_end"),
        ({"colour": 1}, "unknown setting colour"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        VidrdConfig.from_dict(SMALL.to_dict() | changes)


def test_no_dropout_and_one_head_are_allowed():
    config = VidrdConfig.from_dict(SMALL.to_dict() | {"dropout": 0.0, "heads": [1, 1]})
    assert (config.dropout, config.heads) == (0.0, (1, 1))
    assert DecoderConfig(block_channels=(1,), dropout=0.0).dropout == 0.0


def test_configs_survive_a_header():
    assert VidrdConfig.from_dict(SD21.to_dict()) == SD21
    decoder = DecoderConfig(block_channels=(64, 64, 128), layers_per_block=1)
    assert DecoderConfig.from_dict(decoder.to_dict()) == decoder
    with pytest.raises(ValueError, match="decoder config: unknown setting heads"):
        DecoderConfig.from_dict({"block_channels": (64,), "heads": 1})


def test_a_batch_that_is_not_whole_clips_is_refused():
    with pytest.raises(ValueError, match="6 images cannot be divided into clips of 4 frames"):
        conv()(images(), 4)
    with pytest.raises(ValueError, match="6 images cannot be divided into clips of 4 frames"):
        attention()(tokens(), 4)
