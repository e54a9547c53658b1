"""The nodes of a motion model: the list of files, when a node runs again, the outputs."""

import os

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel
from stillmotion.model_patches.harivo.config import HarivoConfig, MappingConfig, TokenConfig
from stillmotion.model_patches.harivo.model import HarivoModel


@pytest.fixture
def nodes(comfy, tmp_path, monkeypatch):
    """Our module, with both folders of motion models below tmp_path; only the first of them exists."""
    import folder_paths

    from stillmotion.nodes import motion

    for name in motion.FOLDERS:
        places = ([str(tmp_path / name)], set())
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, places)
        folder_paths.filename_list_cache.pop(name, None)
    (tmp_path / motion.FOLDERS[0]).mkdir()
    monkeypatch.setattr(motion, "BUNDLED", {"pocket/motion.safetensors": tmp_path / "bundled.safetensors"})
    yield motion
    for name in motion.FOLDERS:
        folder_paths.filename_list_cache.pop(name, None)


def write(path, seed=0):
    torch.manual_seed(seed)
    motion = MotionModel(MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4))
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, system="motion", config=motion.config.to_dict(), weights=motion.state_dict())


def test_the_list_has_the_bundled_file_first_and_the_users_files_of_both_folders(nodes, tmp_path):
    assert nodes.motion_names() == []  # no files, and one folder missing: an empty list, not an error
    write(tmp_path / "bundled.safetensors")
    write(tmp_path / "stillmotion" / "own.safetensors")
    write(tmp_path / "animatediff_models" / "mm_sd_v15.safetensors")
    (tmp_path / "stillmotion" / "readme.txt").write_text("not a model")
    assert nodes.motion_names() == ["pocket/motion.safetensors", "mm_sd_v15.safetensors", "own.safetensors"]
    schema = nodes.LoadMotionModel.define_schema()
    assert schema.inputs[0].options == nodes.motion_names()


def test_loading_returns_the_motion_model_and_its_description(nodes, tmp_path):
    write(tmp_path / "stillmotion" / "own.safetensors")
    motion, info = nodes.LoadMotionModel.execute("own.safetensors").result
    assert motion.config.block_channels == (32, 64)
    assert info.startswith("stillmotion/1: 6 modules for block channels (32, 64), no middle block")


def test_it_loads_again_when_the_file_changes(nodes, tmp_path):
    path = tmp_path / "stillmotion" / "own.safetensors"
    write(path)
    first = nodes.LoadMotionModel.fingerprint_inputs("own.safetensors")
    assert nodes.LoadMotionModel.fingerprint_inputs("own.safetensors") == first
    assert str(tmp_path) not in str(first)
    os.utime(path, ns=(1, 1))
    assert nodes.LoadMotionModel.fingerprint_inputs("own.safetensors") != first


def test_a_file_that_has_gone_is_named_with_the_folders(nodes, tmp_path):
    with pytest.raises(
        ValueError, match=r"the file gone\.safetensors does not exist; put it in one of .*animatediff_models"
    ):
        nodes.LoadMotionModel.execute("gone.safetensors")


@pytest.mark.parametrize("name", ["AnimateDiff\\mm.safetensors", "AnimateDiff/mm.safetensors"])
def test_a_name_that_was_saved_on_another_system_is_found(nodes, tmp_path, name):
    """ComfyUI lists files in subfolders with the separator of its system, and graphs are shared between systems."""
    (tmp_path / "animatediff_models").mkdir(exist_ok=True)
    write(tmp_path / "animatediff_models" / "AnimateDiff" / "mm.safetensors")
    assert nodes.LoadMotionModel.validate_inputs(motion_name=name) is True
    assert nodes.LoadMotionModel.fingerprint_inputs(name)[1] > 1000
    assert nodes.LoadMotionModel.execute(name).result[0].config.block_channels == (32, 64)


def test_a_name_with_a_backslash_is_preferred_if_a_file_is_called_so(nodes, tmp_path):
    folder = tmp_path / "animatediff_models"
    folder.mkdir(exist_ok=True)
    write(folder / "a" / "b.safetensors")
    write(folder / "a\\b.safetensors", seed=1)
    assert nodes.motion_path("a\\b.safetensors").name == "a\\b.safetensors"


def test_suffixes_in_capitals_are_listed_and_read(nodes, tmp_path):
    write(tmp_path / "stillmotion" / "own.safetensors")
    (tmp_path / "stillmotion" / "own.safetensors").rename(tmp_path / "stillmotion" / "OWN.SAFETENSORS")
    weights = MotionModel(MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=8)).state_dict()
    torch.save(weights, tmp_path / "stillmotion" / "MM.CKPT")
    assert {"OWN.SAFETENSORS", "MM.CKPT"} <= set(nodes.motion_names())
    for name in ("OWN.SAFETENSORS", "MM.CKPT"):
        assert nodes.LoadMotionModel.execute(name).result[0].config.block_channels == (32, 64)


@pytest.mark.parametrize("name", ["gone.safetensors", "..\\..\\secret.safetensors", "../secret.safetensors", ""])
def test_what_is_not_listed_is_refused_before_the_run_with_the_folders(nodes, tmp_path, name):
    write(tmp_path / "secret.safetensors")
    message = nodes.LoadMotionModel.validate_inputs(motion_name=name)
    assert "does not exist; put it in one of" in message
    with pytest.raises(ValueError, match="does not exist"):
        nodes.motion_path(name)


def test_a_name_that_another_node_gives_is_checked_when_it_is_known(nodes):
    assert nodes.LoadMotionModel.validate_inputs(motion_name=None) is True
    assert nodes.LoadMotionModel.validate_inputs() is True


def test_every_loader_finds_names_of_other_systems(comfy):
    from comfy_api.v0_0_2 import io

    from stillmotion.nodes import artv, decoder, dreamvideo, motion, sparse

    loaders = [motion.LoadMotionModel, motion.MotionLora, artv.LoadArtvModel, dreamvideo.LoadRetentionBranch]
    loaders += [sparse.LoadSparseCtrl]
    for node in (*loaders, *decoder.NODES):
        combos = [i.id for i in node.define_schema().inputs if isinstance(i, io.Combo.Input) and i.id.endswith("_name")]
        assert combos
        for name in combos:
            assert "put it in one of" in str(node.validate_inputs(**{name: "gone\\file.safetensors"}))


def test_applying_patches_a_clone(nodes, tiny_sd, tmp_path, run_sampler):
    write(tmp_path / "stillmotion" / "own.safetensors")
    motion, _ = nodes.LoadMotionModel.execute("own.safetensors").result
    (patched,) = nodes.ApplyMotionModel.execute(tiny_sd, motion, 4, 1.0, 0.0, 1.0).result
    assert patched is not tiny_sd
    assert torch.equal(run_sampler(patched, frames=4), run_sampler(tiny_sd, frames=4))  # its projections are zero


def test_a_harivo_file_is_loaded_whole_and_each_part_has_its_strength(nodes, tiny_sd, tmp_path, run_sampler):
    model = HarivoModel(
        HarivoConfig(
            motion=MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4),
            mapping=MappingConfig(width=16, heads=4),
            tokens=TokenConfig(context_dim=32),
        )
    )
    assert model.mapping is not None
    torch.nn.init.constant_(model.mapping.proj_out.bias, 0.5)
    path = tmp_path / "stillmotion" / "whole.safetensors"
    checkpoint.save(path, system="harivo", config=model.config.to_dict(), weights=model.state_dict())
    motion, info = nodes.LoadMotionModel.execute("whole.safetensors").result
    assert "HARIVO with a mapping network 16 wide and 3 tokens a frame for text 32 wide" in info
    plain = run_sampler(tiny_sd, frames=4)

    def run(**strengths):
        (patched,) = nodes.ApplyMotionModel.execute(tiny_sd, motion, 4, 1.0, 0.0, 1.0, **strengths).result
        return run_sampler(patched, frames=4)

    assert torch.equal(run(mapping_strength=0.0, token_strength=0.0), plain)
    results = [plain, run(token_strength=0.0), run(mapping_strength=0.0), run()]
    assert not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


def test_later_inputs_are_last_and_optional(nodes):
    """Older graphs have only the first seven inputs; a further required input would break them."""
    inputs = nodes.ApplyMotionModel.define_schema().inputs
    later = ["mapping_strength", "token_strength", "spatial_strength"]
    assert [i.id for i in inputs[-4:]] == ["beta_schedule", *later]
    assert [i.id for i in inputs if i.optional] == later


def test_every_input_has_a_tooltip_and_few_are_shown_at_first(nodes):
    for node in nodes.NODES:
        schema = node.GET_SCHEMA()
        assert schema.description
        assert all(entry.tooltip for entry in schema.inputs)
        widgets = [entry for entry in schema.inputs if hasattr(entry, "default") and not entry.advanced]
        assert len(widgets) <= 6
