"""ART-V files: they are read completely, or refused with the name of what is missing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.artv.config import POCKET, SD21, ArtvConfig
from stillmotion.model_patches.artv.model import ArtvModel
from stillmotion.model_patches.layouts import CheckpointError
from stillmotion.model_patches.pocket import PocketConfig
from stillmotion.model_patches.systems import ARTV

SMALL = ArtvConfig(
    block_channels=(32, 64),
    attention=(False, True),
    heads=(4, 4),
    mask_channels=(16, 32),
    mask_heads=(2, 2),
    layers_per_block=1,
    context_dim=16,
)


def saved(path, config=SMALL, dtype=torch.float32):
    torch.manual_seed(0)
    weights = {k: v.to(dtype) for k, v in ArtvModel(config).state_dict().items()}
    checkpoint.save(path, system="artv", config=config.to_dict(), weights=weights, header={"base": "pocket"})
    return path, weights


def test_the_sizes_of_sd21_have_these_names(request):
    with torch.device("meta"):
        weights = ArtvModel(SD21).state_dict()
    lines = "".join(f"{k} {'x'.join(map(str, v.shape))}\n" for k, v in sorted(weights.items()))
    golden = Path(__file__).parents[2] / "golden" / "keys_artv.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(lines, encoding="utf-8")
    assert golden.read_text(encoding="utf-8") == lines


def test_a_file_keeps_every_part(tmp_path):
    path, weights = saved(tmp_path / "a.safetensors")
    content = checkpoint.load(path, expect=ARTV)
    assert (content.system, content.header["base"]) == ("artv", "pocket")
    assert ArtvConfig.from_dict(content.config) == SMALL
    assert all(torch.equal(content.weights[k], v) for k, v in weights.items())
    line = checkpoint.describe(content)
    assert "ART-V: adapter and 4 anchor blocks for block channels (32, 64)" in line
    assert "mask network with channels (16, 32) for text 16 wide, consistent static part, float32" in line


def test_the_pocket_size_fits_the_bundled_base_and_is_small(tmp_path):
    pocket = Path(__file__).parents[3] / "pocket" / "pocket.safetensors"
    base = PocketConfig.from_dict(checkpoint.load(pocket, expect="pocket").config)
    assert (POCKET.block_channels, POCKET.attention) == (base.unet_channels, base.unet_attention)
    assert (POCKET.layers_per_block, POCKET.context_dim) == (base.unet_layers, base.context)
    assert set(POCKET.heads) == {base.heads}
    path, _ = saved(tmp_path / "p.safetensors", POCKET, torch.float16)
    assert path.stat().st_size < 6e6
    checkpoint.load(path, expect=ARTV)


@pytest.mark.parametrize("part", ["reference", "anchors", "mask"])
def test_a_file_without_a_part_is_named(tmp_path, part):
    path, weights = saved(tmp_path / "a.safetensors")
    rest = {k: v for k, v in weights.items() if not k.startswith(f"{part}.")}
    checkpoint.save(path, system="artv", config=SMALL.to_dict(), weights=rest)
    with pytest.raises(CheckpointError, match=f"is an ART-V file whose config has {part}, but the file has no such"):
        checkpoint.load(path, expect="artv")


def test_parts_of_different_files_do_not_fit(tmp_path):
    """The mask network of a wider model in a file of this one."""
    path, weights = saved(tmp_path / "a.safetensors")
    wide = ArtvConfig(**{**SMALL.to_dict(), "mask_channels": (32, 32)})
    mixed = weights | {k: v for k, v in ArtvModel(wide).state_dict().items() if k.startswith("mask.")}
    checkpoint.save(path, system="artv", config=SMALL.to_dict(), weights=mixed)
    with pytest.raises(CheckpointError, match=r"a\.safetensors has wrong sizes: mask\."):
        checkpoint.load(path, expect="artv")


def test_other_files_and_nan_are_refused(tmp_path):
    path, weights = saved(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="is a StillMotion 'artv' file: a 'motion' or 'vidrd' file is needed"):
        checkpoint.load(path, expect=("motion", "vidrd"))
    save_file(load_file(path), tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="has no StillMotion header: a StillMotion 'artv' file is needed here"):
        checkpoint.load(tmp_path / "bare.safetensors", expect="artv")
    weights["mask.conv_in.bias"][0] = float("nan")
    checkpoint.save(path, system="artv", config=SMALL.to_dict(), weights=weights)
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in 1 of its weights, first mask\.conv_in\.bias"):
        checkpoint.load(path, expect="artv")
