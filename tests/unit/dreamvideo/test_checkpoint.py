"""DreamVideo files, with and without a motion model, and ControlNets as initial weights."""

from pathlib import Path

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.assembly import dreamvideo_model, retention_branch
from stillmotion.model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig
from stillmotion.model_patches.dreamvideo.retention import RetentionBranch
from stillmotion.model_patches.layouts import CheckpointError
from stillmotion.model_patches.ldm_names import control_prefixes, inverse, rename
from stillmotion.model_patches.vidrd.config import VidrdConfig
from stillmotion.model_patches.vidrd.model import VidrdModel

SMALL = {"block_channels": (32, 64), "attention": (False, True), "heads": (4, 8), "layers_per_block": 1}
SMALL |= {"context_dim": 16}


def written(path, *, motion=True, temporal="frozen"):
    layers = VidrdConfig(**SMALL, conv_layers=2).to_dict() if motion or temporal == "frozen" else None
    config = DreamVideoConfig(branch=RetentionConfig(**SMALL, temporal=temporal), layers=layers, motion=motion)
    model = dreamvideo_model(config)
    checkpoint.save(path, system="dreamvideo", config=config.to_dict(), weights=model.state_dict())
    return model


@pytest.mark.parametrize("motion", [True, False])
@pytest.mark.parametrize("temporal", ["frozen", "none"])
def test_a_file_is_read_back_and_described(tmp_path, motion, temporal):
    model = written(tmp_path / "d.safetensors", motion=motion, temporal=temporal)
    content = checkpoint.load(tmp_path / "d.safetensors", expect="dreamvideo")
    dreamvideo_model(DreamVideoConfig.from_dict(content.config)).load_state_dict(content.weights, strict=True)
    assert all(torch.equal(content.weights[k], v) for k, v in model.state_dict().items())
    line = checkpoint.describe(content)
    assert f"{'frozen' if temporal == 'frozen' else 'no'} temporal layers in it" in line
    assert f"{'with' if motion else 'without'} a motion model" in line


def test_the_motion_model_in_a_file_is_a_vidrd_file(tmp_path):
    model = written(tmp_path / "d.safetensors")
    content = checkpoint.motion_of(checkpoint.load(tmp_path / "d.safetensors", expect="dreamvideo"))
    assert (content.system, VidrdConfig.from_dict(content.config).conv_layers) == ("vidrd", 2)
    assert model.motion is not None
    model.motion.load_state_dict(content.weights, strict=True)
    assert "VidRD: 8 Temp-Convs" in checkpoint.describe(content)
    written(tmp_path / "b.safetensors", motion=False)
    with pytest.raises(CheckpointError, match="without a motion model: load it with Load Retention Branch"):
        checkpoint.motion_of(checkpoint.load(tmp_path / "b.safetensors", expect="dreamvideo"))


def test_other_files_are_handed_on_as_they_are():
    other = checkpoint.Checkpoint("motion", {}, {}, {}, "x")
    assert checkpoint.motion_of(other) is other


def test_a_damaged_file_and_the_wrong_kind_are_named(tmp_path):
    model = written(tmp_path / "d.safetensors")
    weights = model.state_dict()
    del weights["branch.controlnet_mid_block.weight"]
    config = checkpoint.load(tmp_path / "d.safetensors", expect="dreamvideo").config
    checkpoint.save(tmp_path / "e.safetensors", system="dreamvideo", config=config, weights=weights)
    with pytest.raises(CheckpointError, match=r"e\.safetensors misses branch\.controlnet_mid_block\.weight"):
        checkpoint.load(tmp_path / "e.safetensors", expect="dreamvideo")
    with pytest.raises(CheckpointError, match="is a StillMotion 'dreamvideo' file: a 'vidrd' file is needed"):
        checkpoint.load(tmp_path / "d.safetensors", expect="vidrd")


@pytest.mark.parametrize("linear", [False, True], ids=["like SD 1.5", "like SD 2"])
@pytest.mark.parametrize("ldm", [False, True], ids=["diffusers", "latent diffusion"])
def test_a_controlnet_is_a_branch_to_begin_with(tmp_path, linear, ldm):
    control = ControlNetModel(
        block_out_channels=(64, 128, 128, 128),
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        layers_per_block=2,
        cross_attention_dim=48,
        attention_head_dim=(1, 2, 2, 2) if linear else 8,
        use_linear_projection=linear,
    )
    weights = control.state_dict()
    if ldm:
        names = inverse(control_prefixes(4, 2, (True, True, True, False)))
        weights = {f"control_model.{k}": v for k, v in rename(weights, names).items()}
    torch.save(weights, tmp_path / "control.pth")
    content = checkpoint.load_controlnet(tmp_path / "control.pth")
    config = DreamVideoConfig.from_dict(content.config)
    assert config.branch == RetentionConfig(
        block_channels=(64, 128, 128, 128),
        attention=(True, True, True, False),
        heads=(1, 2, 2, 2) if linear else (8, 8, 8, 8),
        context_dim=48,
        linear_projection=linear,
        temporal="none",
    )
    dreamvideo_model(config).load_state_dict(content.weights, strict=True)
    for name, weight in control.state_dict().items():
        assert torch.equal(content.weights[f"branch.{name}"], weight)


@pytest.mark.parametrize("linear", [True, False], ids=["SD 2.1", "SD 1.5"])
def test_the_published_sizes_are_read_off(linear):
    from stillmotion.model_patches.control_layouts import from_controlnet

    context, heads = (1024, (5, 10, 20, 20)) if linear else (768, (8, 8, 8, 8))
    expected = RetentionConfig(heads=heads, context_dim=context, linear_projection=linear, temporal="none")
    with torch.device("meta"):
        weights = RetentionBranch(expected).state_dict()
        names = inverse(control_prefixes(4, 2, expected.attention))
        config, branch_weights = from_controlnet(rename(weights, names), "control.pth")
    assert config == expected
    assert branch_weights.keys() == weights.keys()


def test_a_file_that_is_not_a_controlnet_is_named(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth is not a ControlNet: its first keys are conv\.weight"):
        checkpoint.load_controlnet(tmp_path / "x.pth")
    weights = retention_branch(DreamVideoConfig(branch=RetentionConfig(**SMALL, temporal="none"))).state_dict()
    del weights["controlnet_down_blocks.0.weight"]
    torch.save(weights, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match=r"y\.pth misses controlnet_down_blocks\.0\.weight"):
        checkpoint.load_controlnet(tmp_path / "y.pth")
    torch.save({"input_hint_block.0.weight": torch.zeros(1)}, tmp_path / "z.pth")
    with pytest.raises(CheckpointError, match=r"z\.pth is a ControlNet whose blocks differ"):
        checkpoint.load_controlnet(tmp_path / "z.pth")


def test_the_keys_of_a_file_do_not_change(request):
    """Users' files contain these names; those of the temporal layers are in VidRD's list."""
    layers = VidrdConfig(
        block_channels=(320, 640, 1280, 1280), attention=(True, True, True, False), heads=(5, 10, 20, 20)
    )
    config = DreamVideoConfig(branch=RetentionConfig(), layers=layers.to_dict(), motion=True)
    with torch.device("meta"):
        weights = dreamvideo_model(config).state_dict()
    vidrd = ("motion.", "branch.temporal.")
    others = {k: v for k, v in weights.items() if not k.startswith(vidrd)}
    lines = "".join(f"{k} {'x'.join(map(str, v.shape))}\n" for k, v in sorted(others.items()))
    golden = Path(__file__).parents[2] / "golden" / "keys_dreamvideo.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(lines, encoding="utf-8")
    assert golden.read_text(encoding="utf-8") == lines
    with torch.device("meta"):
        known = VidrdModel(layers).state_dict().keys()
    rest = {k.removeprefix(vidrd[0]).removeprefix(vidrd[1]) for k in weights.keys() - others.keys()}
    assert rest == set(known)
