"""No function or class of ComfyUI or torch is replaced before, during or after a run with all methods."""

import pkgutil
import sys
import types

import pytest
import torch

from stillmotion.model_patches import checkpoint
from stillmotion.model_patches.assembly import dreamvideo_model
from stillmotion.model_patches.core.config import MotionConfig
from stillmotion.model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig
from stillmotion.model_patches.harivo.config import HarivoConfig, MappingConfig, TokenConfig
from stillmotion.model_patches.harivo.mitigating import Config
from stillmotion.model_patches.harivo.model import HarivoModel
from stillmotion.model_patches.harivo.stepped import SteppedScale
from stillmotion.model_patches.vidrd.config import VidrdConfig
from stillmotion.model_patches.vidrd.model import VidrdModel

FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    classmethod,
    staticmethod,
    property,
    type,
)
Snapshot = dict[str, dict[str, object]]
BETAS = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}


def watched_modules() -> list[types.ModuleType]:
    """The loaded modules of ComfyUI and of torch.nn, and torch itself."""
    names = [name for name in sys.modules if name.split(".")[0] in {"comfy", "comfy_extras"}]
    names += [name for name in sys.modules if name == "torch.nn" or name.startswith("torch.nn.")]
    return [module for name in [*names, "torch"] if isinstance(module := sys.modules[name], types.ModuleType)]


def functions(owner: types.ModuleType | type) -> dict[str, object]:
    """Functions, methods, properties and classes in the owner's own dictionary."""
    return {name: value for name, value in list(vars(owner).items()) if isinstance(value, FUNCTIONS) or callable(value)}


def snapshot() -> Snapshot:
    """The functions of the watched modules, of every class defined in them, and of tensors. It holds references."""
    names: Snapshot = {"torch.Tensor": functions(torch.Tensor)}
    for module in watched_modules():
        names[module.__name__] = functions(module)
        for name, value in names[module.__name__].items():
            if isinstance(value, type) and value.__module__ == module.__name__:
                names[f"{module.__name__}.{name}"] = functions(value)
    return names


def replaced(before: Snapshot, now: Snapshot) -> list[str]:
    """Names whose object changed or is missing, and new names in a class, which could hide an inherited one.

    New modules and new names in a module replace nothing.
    """
    differences = []
    for owner, then in before.items():
        differences += [f"{owner}.{name}" for name, value in then.items() if now.get(owner, {}).get(name) is not value]
        if owner not in sys.modules:
            differences += [f"{owner}.{name}" for name in now.get(owner, {}) if name not in then]
    return sorted(differences)


def own_callables(model: torch.nn.Module) -> dict[str, object]:
    """Functions assigned to single objects, such as `layer.forward = ...`, in the objects' own dictionaries."""
    return {
        f"{name}.{attribute}": value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, types.FunctionType | types.MethodType)
    }


def harivo():
    """A complete HARIVO model for the tiny U-Net."""
    config = HarivoConfig(
        motion=MotionConfig(block_channels=(32, 64), layers_per_block=1, heads=4, **BETAS),
        mapping=MappingConfig(width=16, heads=4),
        tokens=TokenConfig(context_dim=32),
    )
    return config, HarivoModel(config)


def vidrd():
    """A complete VidRD model for the tiny U-Net, with its fine-tuned blocks."""
    sizes = {"block_channels": (32, 64), "attention": (False, True), "heads": (4, 4), "layers_per_block": 1}
    config = VidrdConfig(**sizes, context_dim=32, **BETAS)
    return config, VidrdModel(config)


@pytest.fixture(params=[harivo, vidrd], ids=lambda system: system.__name__)
def motion_file(request, tmp_path):
    """Models with non-zero updates."""
    torch.manual_seed(0)
    config, model = request.param()
    weights = {k: torch.randn_like(w) * 0.05 if not w.any() else w for k, w in model.state_dict().items()}
    name = request.param.__name__
    checkpoint.save(tmp_path / "motion.safetensors", system=name, config=config.to_dict(), weights=weights)
    return tmp_path / "motion.safetensors"


def test_nothing_is_replaced_before_during_and_after_a_run(tiny_sd, run_sampler, motion_file):
    from comfy.patcher_extension import WrappersMP

    from stillmotion.model_patches.comfy_host.guidance.mitigating import apply_mitigating_gradient
    from stillmotion.model_patches.comfy_host.guidance.stepped import apply_stepped_cfg
    from stillmotion.model_patches.comfy_host.motion.apply import apply_motion
    from stillmotion.model_patches.comfy_host.motion.files import load_motion

    plain = run_sampler(tiny_sd)  # triggers everything that ComfyUI loads late
    before, callables = snapshot(), own_callables(tiny_sd.model)
    assert sum(len(names) for names in before.values()) > 5000
    moving = apply_motion(tiny_sd, load_motion(motion_file), frames=8)
    guided, readout = apply_mitigating_gradient(apply_stepped_cfg(moving, SteppedScale()), Config(), frames=8)
    assert not replaced(before, snapshot())

    seen_inside = []

    def look(executor, *args, **kwargs):
        result = executor(*args, **kwargs)
        seen_inside.append((replaced(before, snapshot()), own_callables(tiny_sd.model) == callables))
        return result

    for place in (WrappersMP.PREDICT_NOISE, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL):
        guided.add_wrapper(place, look)

    def look_from_the_layers(module, *_):
        seen_inside.append((replaced(before, snapshot()), own_callables(tiny_sd.model) == callables))

    hook = tiny_sd.model.diffusion_model.out.register_forward_hook(look_from_the_layers)
    latent = run_sampler(guided, steps=2)
    hook.remove()
    assert not torch.equal(latent, run_sampler(tiny_sd, steps=2))
    assert len(readout.records[-1].calls) == 2
    assert len(seen_inside) == 8
    assert all(inside == ([], True) for inside in seen_inside), seen_inside[0]
    assert not replaced(before, snapshot())
    assert own_callables(tiny_sd.model) == callables
    assert torch.equal(run_sampler(tiny_sd), plain)


def test_nothing_is_replaced_by_a_retention_branch_and_its_guider(tiny_sd, run_sampler, tmp_path):
    from comfy import samplers

    from stillmotion.model_patches.comfy_host.dreamvideo.guider import double_condition_guider
    from stillmotion.model_patches.comfy_host.dreamvideo.retention import apply_retention, load_branch

    sizes = {"block_channels": (32, 64), "attention": (False, True), "heads": (4, 4), "layers_per_block": 1}
    branch = RetentionConfig(**sizes, context_dim=32, linear_projection=False, temporal="none", inject="up_blocks")
    config = DreamVideoConfig(branch=branch)
    weights = {k: torch.randn_like(v) * 0.05 for k, v in dreamvideo_model(config).state_dict().items()}
    checkpoint.save(tmp_path / "d.safetensors", system="dreamvideo", config=config.to_dict(), weights=weights)
    plain = run_sampler(tiny_sd)
    before, callables = snapshot(), own_callables(tiny_sd.model)
    conditioning = [[[torch.randn(1, 77, 32), {}]] for _ in range(2)]
    pair = apply_retention(
        (conditioning[0], conditioning[1]), load_branch(tmp_path / "d.safetensors"), torch.rand(1, 64, 64, 3)
    )
    guider = double_condition_guider(tiny_sd, *pair, text=7.5, image=2.0)
    seen_inside = []

    def look_from_the_layers(*_):
        seen_inside.append((replaced(before, snapshot()), own_callables(tiny_sd.model) == callables))

    hook = tiny_sd.model.diffusion_model.out.register_forward_hook(look_from_the_layers)
    with torch.inference_mode():
        noise = torch.randn(4, 4, 8, 8)
        guider.sample(noise, noise * 0, samplers.sampler_object("euler"), torch.tensor([9.0, 1.0, 0.0]))
    hook.remove()
    assert seen_inside == [([], True)] * 2
    assert not replaced(before, snapshot())
    assert own_callables(tiny_sd.model) == callables
    assert torch.equal(run_sampler(tiny_sd), plain)


REPLACEABLE = (
    "torch.Tensor.add_",
    "torch.nn.functional.silu",
    "torch.nn.modules.normalization.GroupNorm.forward",
    "comfy.samplers.sampling_function",
    "comfy.model_patcher.ModelPatcher.clone",
)


@pytest.mark.parametrize("where", REPLACEABLE)
def test_the_snapshot_notices_a_replaced_function(comfy, monkeypatch, where):
    before = snapshot()
    original = pkgutil.resolve_name(where)
    monkeypatch.setattr(where, lambda *args, **kwargs: original(*args, **kwargs))
    assert where in replaced(before, snapshot())


def test_a_function_put_on_one_layer_is_noticed(tiny_sd):
    callables = own_callables(tiny_sd.model)
    layer = tiny_sd.model.diffusion_model.out
    layer.forward = lambda x: x
    assert own_callables(tiny_sd.model) != callables
