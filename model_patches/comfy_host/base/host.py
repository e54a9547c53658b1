"""The parts of ComfyUI that this pack uses and that ComfyUI does not promise to keep.

ComfyUI has a release a week. `missing` compares this list with the host when the pack is loaded, so that a part that
has gone is named before a graph runs. docs/architecture.md has the same list.
"""

import importlib
from typing import Any

PARTS: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("comfy.controlnet", "ControlBase"): (
        (
            "cond_hint_original", "extra_concat_orig", "previous_controlnet", "strength", "timestep_percent_range",
            "timestep_range", "vae", "set_cond_hint", "pre_run", "copy_to", "control_merge",
        ),
        "ControlNets per frame and in context windows, image retention",
    ),
    ("comfy.samplers", "CFGGuider"): (
        ("model_patcher", "model_options", "original_conds", "conds", "inner_model", "cfg"),
        "the guiders, long videos",
    ),
    ("comfy.samplers", "KSAMPLER"): (("sampler_function", "extra_options", "inpaint_options"), "Reuse and Diffuse"),
    ("comfy.model_patcher", "ModelPatcher"): (
        ("model", "backup", "patches", "additional_models", "model_options", "get_key_patches"),
        "the identity of jobs, motion models",
    ),
    ("comfy.model_sampling", "ModelSamplingDiscrete"): (
        ("num_timesteps", "zsnr", "set_sigmas", "timestep", "percent_to_sigma"),
        "noise levels",
    ),
    ("comfy.context_windows", "IndexListContextWindow"): (("index_list", "total_frames"), "context windows"),
    ("comfy.context_windows", "IndexListContextHandler"): (("context_length", "causal_window_fix"), "context windows"),
    ("comfy.model_base", "BaseModel"): (
        ("current_patcher", "model_sampling", "diffusion_model", "model_config"),
        "motion models",
    ),
    ("comfy.ldm.modules.diffusionmodules.openaimodel", "UNetModel"): (
        ("input_blocks", "middle_block", "output_blocks", "out"),
        "motion models",
    ),
    ("comfy.ldm.modules.diffusionmodules.openaimodel", "ResBlock"): (
        ("in_layers", "out_layers", "out_channels"),
        "motion models, AnimateDiff v1",
    ),
    ("comfy.ldm.modules.attention", "SpatialTransformer"): (("transformer_blocks", "in_channels"), "motion models"),
    ("comfy.sd", "VAE"): (("patcher", "first_stage_model", "decode", "spacial_compression_decode"), "decoding"),
}  # fmt: skip


def missing() -> list[str]:
    """A line for each part that this ComfyUI does not have: its name, and what needs it."""
    lines = []
    for (module, name), (attributes, user) in PARTS.items():
        owner = _class_of(module, name)
        if owner is None:
            lines.append(f"{module}.{name} ({user})")
        else:
            lines += [f"{module}.{name}.{a} ({user})" for a in attributes if not _has(owner, a)]
    return lines


def _class_of(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _has(owner: type, attribute: str) -> bool:
    """Whether a class has an attribute, or a method of it or of its bases names one, as `__init__` does to set it."""
    if hasattr(owner, attribute):
        return True
    methods = [value for base in owner.__mro__ for value in vars(base).values()]
    return any(attribute in getattr(getattr(value, "__code__", None), "co_names", ()) for value in methods)
