"""Weight files: which files are read or refused, the messages, and atomic writing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stillmotion.model_patches import checkpoint, layouts
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel
from stillmotion.model_patches.layouts import CheckpointError

SD15 = (320, 640, 1280, 1280)
RELEASES = {  # version: (middle block, positions, keys, parameters in millions without the tables)
    "v1": (False, 24, 560, 417.1376),
    "v2": (True, 32, 588, 453.20928),
    "v3": (False, 32, 560, 417.1376),
}


def motion_of(channels=(32, 64), **sizes):
    torch.manual_seed(0)
    return MotionModel(MotionConfig(**{"block_channels": channels, "max_frames": 32, "heads": 8} | sizes))


@pytest.fixture
def weights():
    return dict(motion_of().state_dict())


def saved(tmp_path, weights, name="motion.safetensors", **metadata):
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / name, metadata=metadata or None)
    return tmp_path / name


@pytest.mark.parametrize("version", RELEASES)
def test_released_sizes_and_names(version, request):
    """Our model with SD1.5's sizes has the keys, shapes and parameter counts of AnimateDiff's released files."""
    mid, positions, keys, millions = RELEASES[version]
    with torch.device("meta"):
        motion = MotionModel(MotionConfig(block_channels=SD15, mid_block=mid, max_frames=positions))
    weights = motion.state_dict()
    assert len(weights) == keys
    assert sum(p.numel() for p in motion.parameters()) / 1e6 == pytest.approx(millions, abs=1e-6)
    assert len(layouts.to_diffusers(weights)) == keys - (21 if mid else 20)
    compare(request, f"keys_animatediff_{version}.txt", weights)
    if version != "v1":
        compare(request, f"keys_diffusers_{version}.txt", layouts.to_diffusers(weights))


def compare(request, name, weights):
    path = Path(__file__).parents[1] / "golden" / name
    lines = "".join(f"{k} {'x'.join(map(str, v.shape))}\n" for k, v in sorted(weights.items()))
    if request.config.getoption("--update-golden"):
        path.write_text(lines, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == lines


def golden_weights(name):
    lines = (Path(__file__).parents[1] / "golden" / name).read_text(encoding="utf-8").split("\n")[:-1]
    named = (line.split(" ") for line in lines)
    return {k: torch.empty([int(n) for n in v.split("x")], device="meta") for k, v in named}


@pytest.mark.parametrize("version", RELEASES)
def test_a_release_is_recognised_by_its_keys_and_shapes(version):
    weights = golden_weights(f"keys_animatediff_{version}.txt")
    assert layouts.identify(weights, "f") == layouts.ANIMATEDIFF
    config = layouts.motion_config(weights, "f")
    assert layouts.animatediff_version(config) == version
    assert config["block_channels"] == list(SD15)
    assert (config["beta_schedule"], config["beta_start"], config["beta_end"]) == ("linear", 0.00085, 0.012)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_diffusers_keys_become_animatediff_keys(version):
    weights = golden_weights(f"keys_diffusers_{version}.txt")
    assert layouts.identify(weights, "f") == layouts.DIFFUSERS
    converted = layouts.from_diffusers(weights)
    reference = golden_weights(f"keys_animatediff_{version}.txt")
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in reference.items()}


@pytest.mark.parametrize(
    ("mid", "positions", "layout"),
    [(False, 24, "AnimateDiff v1"), (True, 32, "AnimateDiff v2"), (False, 32, "AnimateDiff v3")],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_animatediff_files_load(tmp_path, mid, positions, layout, suffix):
    weights = motion_of(mid_block=mid, max_frames=positions).state_dict()
    path = tmp_path / f"mm{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"epoch": 3, "global_step": 7, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, path)
    content = checkpoint.load(path)
    assert (content.system, content.layout) == ("motion", layout)
    assert content.config["max_frames"] == positions
    assert content.config["image_norm"] == ("per_clip" if layout == "AnimateDiff v1" else "per_frame")
    assert all(torch.equal(content.weights[k], v) for k, v in weights.items())
    assert layout in checkpoint.describe(content)
    assert f"{11 if mid else 10} modules" in checkpoint.describe(content)


def test_a_diffusers_file_loads_to_the_same_weights(tmp_path, weights):
    content = checkpoint.load(saved(tmp_path, layouts.to_diffusers(weights)))
    assert content.layout == "AnimateDiff v3 (diffusers)"
    assert set(content.weights) == set(weights)
    assert all(torch.equal(content.weights[k], v) for k, v in weights.items())


def test_a_training_checkpoint_with_the_whole_unet_gives_its_motion_part(tmp_path, weights):
    whole = {f"module.{k}": v for k, v in weights.items()} | {
        "module.down_blocks.0.resnets.0.conv1.weight": torch.ones(1)
    }
    torch.save({"epoch": 1, "state_dict": whole}, tmp_path / "epoch.pth")
    assert set(checkpoint.load(tmp_path / "epoch.pth").weights) == set(weights)


def test_our_own_file_keeps_everything(tmp_path):
    motion = motion_of(channels=(64, 128, 160), heads=4, layers_per_block=1, max_frames=16)
    config = motion.config.to_dict()
    path = tmp_path / "motion.safetensors"
    checkpoint.save(
        path, system="motion", config=config, weights=motion.state_dict(), header={"base": "pocket", "scores": [1, 2]}
    )
    content = checkpoint.load(path)
    assert content.config == config
    assert MotionConfig.from_dict(content.config) == motion.config
    assert all(torch.equal(content.weights[k], v) for k, v in motion.state_dict().items())
    assert (content.header["format"], content.header["base"]) == ("stillmotion/1", "pocket")
    assert checkpoint.header_json(content.header, "scores") == [1, 2]
    assert checkpoint.header_json(content.header, "absent") is None
    line = checkpoint.describe(content)
    assert "9 modules for block channels (64, 128, 160), no middle block, up to 16 frames, betas of the base" in line
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            [
                "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora.down.weight"
            ],
            "is a motion LoRA",
        ),
        (
            ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
            "is a LoRA for the image model.*LoRA loader",
        ),
        (
            [
                "controlnet_cond_embedding.conv_in.weight",
                "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
            ],
            "is a ControlNet or SparseCtrl",
        ),
        (["unet.down_blocks.0.temp_convs.0.convs.0.weight"], "is a VidRD"),
        (["img_encoder.conv.weight"], "is an image-conditioned motion model"),
        (
            ["conv_in.weight", "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"],
            "is a PIA motion model",
        ),
        (["down_blocks.0.motion_modules.0.x.qkv_merge.weight"], "is a CameraCtrl motion model"),
        (
            ["model.diffusion_model.input_blocks.0.0.weight"],
            "is a whole Stable Diffusion checkpoint.*checkpoint loader",
        ),
        (["decoder.conv_in.weight"], "is a VAE"),
        (["some.other.weight"], "is not a motion model: its first keys are some.other.weight; a motion model has"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, keys, message):
    path = saved(tmp_path, {k: torch.zeros(1) for k in keys}, name="other.safetensors")
    with pytest.raises(CheckpointError, match=rf"other\.safetensors {message}"):
        checkpoint.load(path)


SDXL = (320, 640, 1280)


@pytest.mark.parametrize(
    ("kind", "channels", "positions", "betas"),
    [
        ("animatelcm", SD15, 64, ("linear", 0.012)),
        ("animatediff_sdxl", SDXL, 32, ("scaled_linear", 0.020)),
        ("hotshot", SDXL, 24, ("scaled_linear", 0.012)),
    ],
)
def test_the_rest_of_the_family_is_told_by_its_keys(kind, channels, positions, betas):
    """The lists of keys are written from the layouts that the projects publish."""
    weights = golden_weights(f"keys_{kind}.txt")
    layout = layouts.identify(weights, "f")
    assert layout == (layouts.HOTSHOT if kind == "hotshot" else layouts.ANIMATEDIFF)
    converted = layouts.with_position_tables(layouts.from_hotshot(weights) if kind == "hotshot" else weights)
    config = layouts.motion_config(converted, "f", layout)
    assert (config["block_channels"], config["max_frames"]) == (list(channels), positions)
    assert (config["beta_schedule"], config["beta_start"], config["beta_end"]) == (betas[0], 0.00085, betas[1])
    modules = 20 if channels == SD15 else 15
    assert len(converted) == 28 * (modules + config["mid_block"])


def to_hotshot(weights):
    return {
        k.replace(".motion_modules.", ".temporal_attentions.")
        .replace(".temporal_transformer.", ".")
        .replace(".pos_encoder.pe", ".pos_encoder.positional_encoding"): v
        for k, v in weights.items()
    }


@pytest.mark.parametrize("rest_of_the_unet", [False, True])
def test_a_hotshot_file_loads_to_the_same_weights(tmp_path, weights, rest_of_the_unet):
    content = to_hotshot(weights)
    if rest_of_the_unet:
        content |= {"down_blocks.0.resnets.0.conv1.weight": torch.ones(1), "conv_in.weight": torch.ones(1)}
    file = checkpoint.load(saved(tmp_path, content))
    assert (file.system, file.layout) == ("motion", "Hotshot-XL")
    assert set(file.weights) == set(weights)
    assert all(torch.equal(file.weights[k], v) for k, v in weights.items())


def test_an_animatelcm_file_gets_its_tables(tmp_path):
    weights = motion_of(max_frames=64).state_dict()
    without = {k: v for k, v in weights.items() if "pos_encoder" not in k}
    file = checkpoint.load(saved(tmp_path, without))
    assert (file.layout, file.config["max_frames"]) == ("AnimateLCM", 64)
    assert set(file.weights) == set(weights)
    assert all(torch.equal(file.weights[k], v) for k, v in weights.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_tables_of_an_animatelcm_file_have_the_type_of_its_weights(tmp_path, dtype):
    without = {k: v.to(dtype) for k, v in motion_of().state_dict().items() if "pos_encoder" not in k}
    file = checkpoint.load(saved(tmp_path, without))
    assert {weight.dtype for weight in file.weights.values()} == {dtype}


def test_damaged_weights_are_named(tmp_path, weights):
    incomplete = dict(weights)
    key = "up_blocks.1.motion_modules.2.temporal_transformer.proj_out.bias"
    del incomplete[key]
    with pytest.raises(CheckpointError, match=rf"misses {key}"):
        checkpoint.load(saved(tmp_path, incomplete))
    with pytest.raises(CheckpointError, match=r"has wrong sizes: up_blocks.* \(7,\) instead of \(32,\)"):
        checkpoint.load(saved(tmp_path, weights | {key: torch.zeros(7)}))
    with pytest.raises(CheckpointError, match=r"has unknown down_blocks\.0\.motion_modules\.9\.extra"):
        checkpoint.load(saved(tmp_path, weights | {"down_blocks.0.motion_modules.9.extra": torch.zeros(1)}))
    holes = {k: v for k, v in weights.items() if not k.startswith("down_blocks.0.")}
    with pytest.raises(CheckpointError, match=r"incomplete: it has motion modules only for the down blocks \[1\]"):
        checkpoint.load(saved(tmp_path, holes))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (float("nan"), torch.float32),
        (float("inf"), torch.float32),
        (float("inf"), torch.float16),
        (float("nan"), torch.float8_e4m3fn),  # this dtype has no infinity
    ],
)
def test_nan_and_infinite_weights_are_refused(tmp_path, weights, value, dtype):
    key = "up_blocks.0.motion_modules.1.temporal_transformer.norm.bias"
    bad = weights[key].clone()
    bad[3] = value
    with pytest.raises(CheckpointError, match=rf"NaN or infinite values in 1 of its weights, first {key}"):
        checkpoint.load(saved(tmp_path, weights | {key: bad.to(dtype)}))


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_truncated_files_are_refused(tmp_path, weights, keep, suffix):
    path = tmp_path / f"motion{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=rf"motion\{suffix} (is truncated|holds more)"):
        checkpoint.load(path)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_pickled_code_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, "bomb.ckpt")
    with pytest.raises(CheckpointError, match="pickled code is never run"):
        checkpoint.load("bomb.ckpt")
    assert not Path("exploded").exists()


def test_missing_and_unreadable_names(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.safetensors does not exist; put the file there"):
        checkpoint.load(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="nor does the folder"):
        checkpoint.load(tmp_path / "no" / "gone.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"weights are read from \.safetensors.*not from \.txt"):
        checkpoint.load(tmp_path / "notes.txt")
    (tmp_path / "page.safetensors").write_text("<html>404 Not Found</html>" * 50)
    with pytest.raises(CheckpointError, match=r"page\.safetensors is a web page, and no weight file; download"):
        checkpoint.load(tmp_path / "page.safetensors")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt holds a list, not named weights"):
        checkpoint.load(tmp_path / "list.pt")


def test_the_header_must_fit(tmp_path, weights):
    config = json.dumps(MotionConfig(block_channels=(32, 64)).to_dict())
    path = saved(tmp_path, weights, format="stillmotion/2", system="motion", config=config)
    with pytest.raises(CheckpointError, match="has the format stillmotion/2, this StillMotion reads stillmotion/1"):
        checkpoint.load(path)
    path = saved(tmp_path, weights, format="stillmotion/1", system="pocket", config="{}")
    with pytest.raises(CheckpointError, match="is a StillMotion 'pocket' file: a 'motion' file is needed"):
        checkpoint.load(path)
    for broken in ("{", "{}", '{"block_channels": [33]}', config.replace("heads", "colour")):
        path = saved(tmp_path, weights, format="stillmotion/1", system="motion", config=broken)
        with pytest.raises(CheckpointError, match="has a header that cannot be used"):
            checkpoint.load(path)
    with pytest.raises(CheckpointError, match="has no StillMotion header: a StillMotion 'pocket' file is needed"):
        checkpoint.load(saved(tmp_path, weights), expect="pocket")


FULL_DISK = """
import resource, signal, sys
import torch
from stillmotion.model_patches import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(sys.argv[1], system="motion", config={}, weights={"w": torch.ones(1_000_000)})
except checkpoint.CheckpointError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
@pytest.mark.parametrize("existing", [None, b"the file of yesterday"])
@pytest.mark.slow
def test_a_full_disk_leaves_no_half_file_and_keeps_the_old_one(tmp_path, existing):
    path = tmp_path / "motion.safetensors"
    if existing:
        path.write_bytes(existing)
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False)
    assert "refused:" in run.stderr, run.stderr
    assert "could not be written" in run.stderr
    assert [p.name for p in tmp_path.iterdir()] == (["motion.safetensors"] if existing else [])
    if existing:
        assert path.read_bytes() == existing


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpoint.save(tmp_path / "no" / "m.safetensors", system="motion", config={}, weights={"w": torch.ones(1)})


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_a_saved_file_has_the_permissions_of_any_other_new_file(tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", system="pocket", config={}, weights={"w": torch.zeros(1)})
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode
