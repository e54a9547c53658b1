"""Motion LoRAs on a motion model in ComfyUI equal a motion model whose weights have been changed by hand."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.checkpoint import CheckpointError
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.core.temporal import MotionModel

LAYERS = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q",
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_out.0",
    "up_blocks.1.motion_modules.1.temporal_transformer.transformer_blocks.0.ff.net.0.proj",
)
RANK, ALPHA, FRAMES = 3, 6.0, 4


def random_motion():
    """For conftest's tiny_sd, with weights as after training."""
    torch.manual_seed(1)
    motion = MotionModel(MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, max_frames=8))
    for parameter in motion.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return motion


def close(a, b, share=1e-4):
    """Equal up to a relative error, because random networks have no natural scale."""
    return bool((a - b).abs().max() <= share * b.abs().max())


def changes(motion, seed):
    """Layer -> (down, up)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {name: motion.get_submodule(name).weight.shape for name in LAYERS}
    return {
        name: (torch.randn(RANK, i, generator=generator) / 4, torch.randn(o, RANK, generator=generator) / 4)
        for name, (o, i) in sizes.items()
    }


@pytest.fixture
def lora_file(tmp_path):
    """lora_file(seed) -> the path of a motion LoRA for `random_motion`."""

    def write(seed=1, **surplus):
        weights = {f"alpha_of.{seed}": torch.ones(1)} | surplus
        for name, (down, up) in changes(random_motion(), seed).items():
            weights |= {
                f"{name}.lora_A.weight": down,
                f"{name}.lora_B.weight": up,
                f"{name}.alpha": torch.tensor(ALPHA),
            }
        path = tmp_path / f"lora_{seed}_{len(surplus)}.safetensors"
        save_file({key: weight.contiguous() for key, weight in weights.items()}, path)
        return path

    return write


@pytest.fixture
def file(weight_file):
    """file({seed of a LoRA: strength}) -> the path of a motion model whose weights contain these LoRAs."""

    def write(strengths):
        motion = random_motion()
        for seed, strength in strengths.items():
            for name, (down, up) in changes(motion, seed).items():
                motion.get_submodule(name).weight.data += strength * ALPHA / RANK * up @ down
        return weight_file("motion", motion)

    return write


@pytest.fixture
def host(comfy):
    from stillmotion.model_patches.comfy_host.motion import apply, files, lora

    return apply, files, lora


def sampled(host, model, run_sampler, path, *loras, **options):
    """The latent, sampled with a motion model and LoRAs: (path, options) each."""
    apply, files, lora = host
    motion = files.load_motion(path)
    for lora_path, of_lora in loras:
        motion = lora.with_lora(motion, lora_path, **of_lora)
    return run_sampler(apply.apply_motion(model, motion, frames=FRAMES, **options), frames=FRAMES, steps=6)


def test_it_equals_changed_weights(host, tiny_sd, run_sampler, file, lora_file):
    plain = sampled(host, tiny_sd, run_sampler, file({}))
    changed = sampled(host, tiny_sd, run_sampler, file({1: 0.7}))
    with_lora = sampled(host, tiny_sd, run_sampler, file({}), (lora_file(1), {"strength": 0.7}))
    assert close(with_lora, changed)
    assert not close(with_lora, plain, 0.01)


def test_several_add_up(host, tiny_sd, run_sampler, file, lora_file):
    changed = sampled(host, tiny_sd, run_sampler, file({1: 0.7, 2: -0.4}))
    loras = ((lora_file(1), {"strength": 0.7}), (lora_file(2), {"strength": -0.4}))
    assert close(sampled(host, tiny_sd, run_sampler, file({}), *loras), changed)


def test_strength_0_is_off(host, tiny_sd, run_sampler, file, lora_file):
    plain = sampled(host, tiny_sd, run_sampler, file({}))
    assert torch.equal(sampled(host, tiny_sd, run_sampler, file({}), (lora_file(1), {"strength": 0.0})), plain)


def in_turn(host, model, run_sampler, *files):
    """The latent, sampled with several motion models one after the other: (path, start, end) each."""
    apply, loader, _ = host
    for path, start, end in files:
        motion = loader.load_motion(path)
        model = apply.apply_motion(model, motion, frames=FRAMES, start_percent=start, end_percent=end)
    return run_sampler(model, frames=FRAMES, steps=6)


def test_each_has_its_part_of_the_sampling(host, tiny_sd, run_sampler, file, lora_file):
    parts = ((file({1: 1.0}), 0.0, 0.3), (file({1: 1.0, 2: 1.0}), 0.3, 0.7), (file({2: 1.0}), 0.7, 1.0))
    reference = in_turn(host, tiny_sd, run_sampler, *parts)
    loras = ((lora_file(1), {"end_percent": 0.7}), (lora_file(2), {"start_percent": 0.3}))
    assert close(sampled(host, tiny_sd, run_sampler, file({}), *loras), reference)
    assert not close(sampled(host, tiny_sd, run_sampler, file({}), loras[0]), reference, 0.01)


def test_the_part_of_the_motion_model_counts_as_well(host, tiny_sd, run_sampler, file, lora_file):
    reference = in_turn(host, tiny_sd, run_sampler, (file({}), 0.25, 0.45), (file({1: 1.0}), 0.45, 0.85))
    part = {"start_percent": 0.25, "end_percent": 0.85}
    assert close(
        sampled(host, tiny_sd, run_sampler, file({}), (lora_file(1), {"start_percent": 0.45}), **part), reference
    )


def test_a_level_on_the_border_of_two_parts_belongs_to_one(host, tiny_sd, file, lora_file):
    apply, files, lora = host
    motion = lora.with_lora(files.load_motion(file({})), lora_file(1), start_percent=0.5)
    model = apply.apply_motion(tiny_sd, motion, frames=FRAMES)
    sampling = model.get_model_object("model_sampling")
    uses = [patcher.get_attachment(apply.KEY) for patcher in model.get_additional_models_with_key(apply.KEY)]
    for percent, active in ((0.2, [True, False]), (0.5, [False, True]), (0.9, [False, True])):
        level = torch.tensor([sampling.percent_to_sigma(percent)], dtype=torch.float64)
        assert [use.active(sampling, level) for use in uses] == active


def test_it_leaves_nothing_behind(host, tiny_sd, run_sampler, file, lora_file):
    apply, files, lora = host
    motion = files.load_motion(file({}))
    with_lora = apply.apply_motion(tiny_sd, lora.with_lora(motion, lora_file(1)), frames=FRAMES)
    without = apply.apply_motion(tiny_sd, motion, frames=FRAMES)
    a, b, again, c = (run_sampler(model, frames=FRAMES) for model in (without, with_lora, without, with_lora))
    assert torch.equal(a, again)
    assert torch.equal(b, c)
    assert not close(a, b, 0.01)


def test_the_same_motion_model_with_and_without_it_on_one_model(host, tiny_sd, run_sampler, file, lora_file):
    apply, files, lora = host
    reference = tiny_sd
    for path in (file({}), file({1: 1.0})):
        reference = apply.apply_motion(reference, files.load_motion(path), frames=FRAMES, strength=0.5)
    motion = files.load_motion(file({}))
    model = apply.apply_motion(tiny_sd, motion, frames=FRAMES, strength=0.5)
    model = apply.apply_motion(model, lora.with_lora(motion, lora_file(1)), frames=FRAMES, strength=0.5)
    assert close(run_sampler(model, frames=FRAMES), run_sampler(reference, frames=FRAMES))


def test_it_belongs_to_the_identity_of_a_job(host, tiny_sd, file, lora_file):
    apply, files, lora = host
    from stillmotion.model_patches.comfy_host.base.fingerprint import of_model

    motion = files.load_motion(file({}))
    versions = [motion, *(lora.with_lora(motion, lora_file(1), strength=s) for s in (1.0, 0.5))]
    hashes = {of_model(apply.apply_motion(tiny_sd, version, frames=FRAMES)) for version in versions}
    assert len(hashes) == 3


def test_it_works_on_the_temporal_layers_of_a_harivo_file(host, comfy, tiny_sd, run_sampler, weight_file, lora_file):
    from stillmotion.model_patches.harivo.config import HarivoConfig
    from stillmotion.model_patches.harivo.model import HarivoModel

    motion, results = random_motion(), []
    for strength in (0.0, 1.0):
        model = HarivoModel(HarivoConfig(motion=motion.config))
        model.temporal.load_state_dict(motion.state_dict())
        for name, (down, up) in changes(motion, 1).items():
            layer: Any = model.temporal.get_submodule(name)
            layer.weight.data += strength * ALPHA / RANK * up @ down
        results.append(weight_file("harivo", model))
    plain, changed = results
    assert close(
        sampled(host, tiny_sd, run_sampler, plain, (lora_file(1), {})), sampled(host, tiny_sd, run_sampler, changed)
    )


MIDDLE = "mid_block.motion_modules.0.temporal_transformer.proj_in"


def test_the_middle_block_of_a_lora_may_be_missing_in_the_motion_model(
    host, tiny_sd, run_sampler, file, lora_file, caplog
):
    surplus = {f"{MIDDLE}.lora_A.weight": torch.ones(1, 64), f"{MIDDLE}.lora_B.weight": torch.ones(64, 1)}
    with caplog.at_level(logging.WARNING):
        result = sampled(host, tiny_sd, run_sampler, file({}), (lora_file(1, **surplus), {}))
    assert "also changes the middle block, which this motion model does not have" in caplog.text
    assert close(result, sampled(host, tiny_sd, run_sampler, file({1: 1.0})))


def test_a_lora_for_another_motion_model_is_refused_by_name(host, file, lora_file, tmp_path):
    _, files, lora = host
    motion = files.load_motion(file({}))
    name = "down_blocks.3.motion_modules.0.temporal_transformer.proj_in"
    surplus = {f"{name}.lora_A.weight": torch.ones(1, 64), f"{name}.lora_B.weight": torch.ones(64, 1)}
    with pytest.raises(
        CheckpointError, match=rf"lora_1_2\.safetensors changes {name}\.weight, which this motion model"
    ):
        lora.with_lora(motion, lora_file(1, **surplus))
    save_file({f"{LAYERS[0]}.lora_A.weight": torch.ones(1, 320), f"{LAYERS[0]}.lora_B.weight": torch.ones(320, 1)},
              tmp_path / "wide.safetensors")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"changes a matrix of 320 x 320 in .* is 32 x 32"):
        lora.with_lora(motion, tmp_path / "wide.safetensors")


def test_the_node_adds_a_lora_of_its_folder(host, comfy, file, lora_file, tmp_path, monkeypatch):
    import folder_paths

    from stillmotion.nodes import motion as nodes

    _, files, _ = host
    path = lora_file(1)
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "animatediff_motion_lora", ([str(tmp_path)], {".safetensors"})
    )
    folder_paths.filename_list_cache.pop("animatediff_motion_lora", None)
    motion = replace(files.load_motion(file({})), info="a motion model")
    names: Any = nodes.MotionLora.define_schema().inputs[1]
    assert path.name in names.options
    outputs: Any = nodes.MotionLora.execute(motion, path.name, 0.5, 0.0, 1.0).result
    changed, info = outputs
    assert info == f"a motion model; LoRA {path.name} at 0.5"
    assert [lora.strength for lora in changed.loras] == [0.5]
    assert motion.loras == ()
    with pytest.raises(ValueError, match=r"motion LoRA: the file gone\.safetensors does not exist"):
        nodes.MotionLora.execute(motion, "gone.safetensors", 0.5, 0.0, 1.0)
    folder_paths.filename_list_cache.pop("animatediff_motion_lora", None)


def test_a_lora_in_the_list_of_motion_models_is_named(tmp_path, lora_file):
    with pytest.raises(CheckpointError, match=r"is a motion LoRA: .* load it with Motion LoRA"):
        checkpoint.load(lora_file(1))
