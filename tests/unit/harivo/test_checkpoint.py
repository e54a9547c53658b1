"""HARIVO files: they are read completely, or refused with the name of what is missing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.harivo.config import HarivoConfig, MappingConfig, TokenConfig
from stillmotion.model_patches.harivo.model import HarivoModel
from stillmotion.model_patches.layouts import CheckpointError
from stillmotion.model_patches.systems import HARIVO, MOTION

EITHER = (MOTION, HARIVO)


def model_of(**changes):
    config = {
        "motion": MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, max_frames=8),
        "mapping": MappingConfig(width=16, heads=4, max_frames=8),
        "tokens": TokenConfig(context_dim=16, context_length=7, frames=6),
    }
    torch.manual_seed(0)
    return HarivoModel(HarivoConfig(**config | changes))


def saved(path, model, system="harivo"):
    config = model.config.to_dict()
    checkpoint.save(path, system=system, config=config, weights=model.state_dict(), header={"base": "pocket"})
    return path


def test_the_sizes_of_sd15_have_these_names(request):
    config = HarivoConfig(
        motion=MotionConfig(block_channels=(320, 640, 1280, 1280)),
        mapping=MappingConfig(),
        tokens=TokenConfig(context_dim=768),
    )
    with torch.device("meta"):
        weights = HarivoModel(config).state_dict()
    others = {k: v for k, v in weights.items() if not k.startswith("temporal.")}
    lines = "".join(f"{k} {'x'.join(map(str, v.shape))}\n" for k, v in sorted(others.items()))
    golden = Path(__file__).parents[2] / "golden" / "keys_harivo.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(lines, encoding="utf-8")
    assert golden.read_text(encoding="utf-8") == lines
    # the temporal keys are AnimateDiff's, which have their own list
    listed = (Path(__file__).parents[2] / "golden" / "keys_animatediff_v3.txt").read_text(encoding="utf-8")
    temporal = {k.removeprefix("temporal.") for k in weights if k.startswith("temporal.")}
    assert temporal == {line.split(" ")[0] for line in listed.splitlines()}


@pytest.mark.parametrize("absent", [(), ("mapping",), ("tokens",), ("mapping", "tokens")])
def test_a_file_keeps_every_part(tmp_path, absent):
    model = model_of(**dict.fromkeys(absent))
    path = saved(tmp_path / "h.safetensors", model)
    for expect in ("harivo", EITHER):
        content = checkpoint.load(path, expect=expect)
        assert (content.system, content.header["base"]) == ("harivo", "pocket")
        assert HarivoConfig.from_dict(content.config) == model.config
        assert all(torch.equal(content.weights[k], v) for k, v in model.state_dict().items())
    line = checkpoint.describe(content)
    assert "HARIVO with" in line
    assert ("no mapping network" in line) is ("mapping" in absent)
    assert ("no frame-wise tokens" in line) is ("tokens" in absent)


def test_a_motion_file_is_still_read_where_either_will_do(tmp_path):
    motion = model_of().temporal
    path = saved(tmp_path / "m.safetensors", motion, system="motion")
    assert checkpoint.load(path, expect=EITHER).system == "motion"
    save_file(motion.state_dict(), tmp_path / "plain.safetensors")
    assert checkpoint.load(tmp_path / "plain.safetensors", expect=EITHER).system == "motion"


def test_the_wrong_kind_is_named(tmp_path):
    path = saved(tmp_path / "h.safetensors", model_of())
    with pytest.raises(CheckpointError, match="is a StillMotion 'harivo' file: a 'motion' file is needed"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="is a StillMotion 'harivo' file: a 'pocket' or 'motion' file"):
        checkpoint.load(path, expect=("pocket", "motion"))
    save_file({"temporal.x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="no StillMotion header: a StillMotion 'harivo' file"):
        checkpoint.load(tmp_path / "plain.safetensors", expect="harivo")


@pytest.mark.parametrize("part", ["temporal", "mapping", "tokens"])
def test_a_missing_component_is_named(tmp_path, part):
    path = saved(tmp_path / "h.safetensors", model_of())
    metadata = checkpoint.load(path, expect="harivo").header
    rest = {k: v for k, v in load_file(path).items() if not k.startswith(f"{part}.")}
    save_file(rest, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=rf"h\.safetensors is a HARIVO file whose config has {part}, but"):
        checkpoint.load(path, expect=EITHER)


def test_a_lost_weight_a_surplus_one_and_an_unknown_setting_are_named(tmp_path):
    model = model_of()
    path, config = tmp_path / "h.safetensors", model.config.to_dict()
    state = dict(model.state_dict())

    def refused(weights, config, message):
        checkpoint.save(path, system="harivo", config=config, weights=weights)
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(path, expect="harivo")

    refused({k: v for k, v in state.items() if k != "tokens.conv.bias"}, config, r"misses tokens\.conv\.bias")
    refused(state, config | {"mapping": None}, r"has unknown mapping\.")
    refused(state, config | {"colour": 1}, r"header that cannot be used \(HARIVO config: unknown setting colour")
    refused(state | {"tokens.conv.bias": torch.full((18,), torch.nan)}, config, "NaN or infinite values")
