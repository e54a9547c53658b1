"""ART-V's networks: the parameter counts of Table 2, the identity if untrained, inputs that affect outputs."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from stillmotion.model_patches.artv.adapter import ReferenceAdapter
from stillmotion.model_patches.artv.anchor import AnchorBlock, patch_tokens
from stillmotion.model_patches.artv.config import POCKET, SD15, SD21, ArtvConfig
from stillmotion.model_patches.artv.model import ArtvModel
from stillmotion.model_patches.artv.places import AnchorBlocks, sites
from stillmotion.model_patches.core.slots import MIDDLE, Slot

SD21_UNET = 865.910724  # in M, counted with diffusers' own class
SMALL = ArtvConfig(
    block_channels=(32, 64),
    attention=(False, True),
    heads=(4, 4),
    mask_channels=(16, 32),
    mask_heads=(2, 2),
    layers_per_block=1,
    context_dim=16,
)


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def shaken(module, seed=1):
    """Weights as after training: nothing is zero or neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_counts_are_those_of_table_2():
    """Adapters as in the paper; anchor blocks and the inside of the mask network are reconstructed to fit the sums."""
    with torch.device("meta"):
        model = ArtvModel(SD21)
    assert millions(model.reference) == pytest.approx(76.84, rel=1e-4)
    assert millions(model.mask.reference) == pytest.approx(3.08, rel=1e-4)
    assert SD21_UNET + millions(model.reference) + millions(model.anchors) == pytest.approx(1167.69, rel=1e-5)
    assert millions(model.mask) == pytest.approx(51.18, rel=1e-4)


def test_each_anchor_block_has_the_parameters_that_the_counts_imply():
    """18 d^2 + 153 d; with CLIP's tokens the sums would differ by more than 0.1 %."""
    with torch.device("meta"):
        block = AnchorBlock(1280, SD21.token_width, 20)
        clip = ArtvModel(replace(SD21, anchor="clip", anchor_width=1024))
    assert sum(p.numel() for p in block.parameters()) == 18 * 1280**2 + 153 * 1280
    assert abs(SD21_UNET + millions(clip.reference) + millions(clip.anchors) - 1167.69) > 1.1677


def test_the_sizes_for_sd15_and_the_pocket_exist():
    with torch.device("meta"):
        sizes = {name: millions(ArtvModel(config)) for name, config in (("sd15", SD15), ("pocket", POCKET))}
    assert sizes["sd15"] == pytest.approx(351.68, rel=1e-3)
    assert 2 * sizes["pocket"] < 6  # MB in half precision, for the file in the pack


def test_sites_are_those_of_the_transformers_in_the_order_of_a_forward_pass():
    assert len(sites(SD21)) == 16
    assert [str(slot) for slot in sites(SMALL)] == [
        "down block 1, layer 0", "mid", "up block 0, layer 0", "up block 0, layer 1",
    ]  # fmt: skip
    assert sites(SMALL)[MIDDLE] == 1


def test_a_fresh_adapter_adds_nothing_and_learns_from_its_first_step():
    adapter: Any = ReferenceAdapter((32, 64), 8)
    features = adapter(noise(2, 8, 6, 5))
    assert [tuple(f.shape) for f in features] == [(2, 32, 6, 5), (2, 64, 3, 3)]
    assert all(bool((f == 0).all()) for f in features)
    torch.cat([f.flatten() for f in features]).sum().backward()
    assert adapter.conv_in.weight.grad.abs().max() > 0


def test_a_feature_sees_its_surroundings_only():
    adapter = shaken(ReferenceAdapter((8, 16), 8))
    x: Any = noise(1, 8, 16, 16).requires_grad_()
    adapter(x)[0][0, :, 8, 8].sum().backward()
    reach = x.grad.abs().sum((0, 1)).nonzero()  # two blocks and conv_in, 3x3 each
    assert reach.min(0).values.tolist() == [5, 5]
    assert reach.max(0).values.tolist() == [11, 11]


def test_a_fresh_anchor_block_changes_no_bit_and_a_trained_one_looks_at_the_anchor():
    fresh, block = AnchorBlock(32, 68, 4), shaken(AnchorBlock(32, 68, 4))
    x, tokens = noise(2, 32, 3, 5), patch_tokens(noise(2, 4, 12, 20), 4, True)
    assert torch.equal(fresh(x, tokens), x)
    once, other = block(x, tokens), block(x, patch_tokens(noise(2, 4, 12, 20, seed=1), 4, True))
    assert (once - other).abs().max() > 1e-3
    assert torch.equal(once[0], block(x[:1], tokens[:1])[0])  # the images of a batch do not mix


def test_every_place_has_an_anchor_block_of_its_own_and_other_layers_have_none():
    anchors = AnchorBlocks(SMALL, SMALL.block_channels, SMALL.heads)
    keys = {
        Slot("down", 1, 0): "down_blocks.1.0",
        MIDDLE: "mid_block",
        Slot("up", 0, 0): "up_blocks.0.0",
        Slot("up", 0, 1): "up_blocks.0.1",
    }
    assert list(sites(SMALL)) == list(keys)
    assert all(anchors.at(slot) is anchors.get_submodule(key) for slot, key in keys.items())
    assert all(anchors.at(slot) is None for slot in (Slot("down", 0, 0), Slot("up", 1, 0), Slot("down", 1, 1)))
    x = noise(1, 32, 3, 5)
    assert anchors.change(Slot("down", 0, 0), x, noise(1, 6, 68)) is x


def test_patches_hold_the_latent_and_tell_where_they_are():
    anchor = noise(2, 4, 6, 9)
    bare, placed = patch_tokens(anchor, 4, False), patch_tokens(anchor, 4, True)
    assert bare.shape == (2, 6, 64)  # 2 x 3 patches, padded at the bottom and on the right
    assert torch.equal(placed[..., :64], bare)
    assert bare.sum() == pytest.approx(anchor.sum().item(), abs=1e-3)
    assert len({tuple(row) for row in placed[0, :, 64:].tolist()}) == 6
    assert torch.equal(bare[0, 0].view(4, 4, 4), anchor[0, :, :4, :4])


def test_the_position_of_a_patch_is_that_of_its_centre_on_half_a_circle():
    tokens = patch_tokens(noise(2, 4, 12, 20), 4, True)[..., 64:]
    for row, column in product(range(3), range(5)):
        y, x = math.pi * (2 * row + 1) / 6, math.pi * (2 * column + 1) / 10
        position = torch.tensor([math.sin(y), math.cos(y), math.sin(x), math.cos(x)])
        torch.testing.assert_close(tokens[:, 5 * row + column], position.expand(2, 4))


def test_a_fresh_mask_is_a_half_and_a_trained_one_depends_on_everything():
    model = ArtvModel(SMALL).mask
    inputs = {
        "y_t": noise(1, 4, 10, 6),
        "t": torch.tensor([500]),
        "context": noise(1, 7, 16),
        "references": noise(1, 8, 10, 6, seed=1),
        "tokens": noise(1, 6, 68, seed=2),
        "level": torch.tensor([200]),
    }
    other = {
        "y_t": noise(1, 4, 10, 6, seed=3),
        "t": torch.tensor([20]),
        "context": noise(1, 7, 16, seed=4),
        "references": noise(1, 8, 10, 6, seed=5),
        "tokens": noise(1, 6, 68, seed=6),
        "level": torch.tensor([100]),
    }

    @torch.no_grad()
    def run(values):
        values = dict(values)
        return model(features=model.reference(values.pop("references")), **values)

    assert torch.equal(run(inputs), torch.full((1, 1, 10, 6), 0.5))
    shaken(model)
    m = run(inputs)
    assert bool(((m > 0) & (m < 1)).all())
    for name, value in other.items():
        assert (run(inputs | {name: value}) - m).abs().max() > 1e-5, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_channels": ()}, "block_channels is empty"),
        ({"heads": (4,)}, "heads has 1 entries for 2 down blocks"),
        ({"mask_heads": (3, 3)}, "3 heads do not divide 16 channels"),
        ({"block_channels": (0, 64)}, "4 heads do not divide 0 channels"),
        ({"block_channels": (-8, 64)}, "4 heads do not divide -8 channels"),
        ({"heads": (0, 4)}, "0 heads do not divide 32 channels"),
        ({"mask_channels": (16, 15), "mask_heads": (2, 3)}, "15 channels, or the channels are odd"),
        ({"static": "both"}, "static is 'both'; choose one of consistent, paper, reversed"),
        ({"anchor": "pixels"}, "anchor is 'pixels'; choose one of latent, clip"),
        ({"level_embedding": "outside"}, "level_embedding is 'outside'"),
        ({"anchor_ff": 0}, "anchor_ff is 0"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_a_config_is_the_same_after_a_file():
    assert ArtvConfig.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(ValueError, match="unknown setting frames"):
        ArtvConfig.from_dict(SMALL.to_dict() | {"frames": 3})


def test_heads_are_as_wide_as_in_the_paper_and_few_in_the_pocket_models():
    assert {c // n for c, n in zip(SD21.block_channels, SD21.heads, strict=True)} == {64}
    assert {c // n for c, n in zip(SD21.mask_channels, SD21.mask_heads, strict=True)} == {32}
    assert replace(SD15, heads=SD21.heads, context_dim=SD21.context_dim) == SD21
    assert (SD15.heads, SD15.context_dim, SD21.context_dim) == ((8,) * 4, 768, 1024)
    assert (POCKET.block_channels, POCKET.heads) == ((64, 128, 128), (4, 4, 4))
    assert (POCKET.mask_channels, POCKET.mask_heads) == ((24, 32, 32), (2, 2, 2))
