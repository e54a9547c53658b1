"""Short hashes of the inputs of a video: equal if nothing changed, even after a restart of ComfyUI.

The hash of a model covers its vectors (norms and biases, which every training changes) and everything that is patched
onto it, because hashing gigabytes of matrices at every start would take longer than a clip. ComfyUI merges LoRAs into
the weights of a loaded model, so ComfyUI's backup of the original weights is hashed instead.
"""

import hashlib
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import comfy.model_management
import torch
from comfyui_version import __version__ as comfyui
from torch import Tensor

DIGITS = 12


def of_model(patcher: Any) -> str:
    """Hash of a ModelPatcher: its weights, patches and additional models (motion models)."""
    digest = hashlib.sha256()
    weights = dict(
        patcher.model.named_parameters()
    )  # without the noise levels, which a patch replaces while the model is loaded
    for name in sorted(weights):
        backup = patcher.backup.get(name)
        weight = weights[name] if backup is None else backup.weight
        if weight.ndim < 2:
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            _add(digest, weight)
    for name in sorted(patcher.patches):
        digest.update(str(name).encode())
        _walk(digest, patcher.patches[name])
    for key in sorted(patcher.additional_models):
        for model in patcher.additional_models[key]:
            digest.update(f"{key} {of_model(model)}".encode())
    return digest.hexdigest()[:DIGITS]


def of_values(values: Any) -> str:
    """Hash of conditioning, or of any lists, dicts, tensors, numbers and ControlNets. Other objects: their class."""
    digest = hashlib.sha256()
    _walk(digest, values)
    return digest.hexdigest()[:DIGITS]


def of_sampler(sampler: Any) -> str:
    """Hash of a SAMPLER: its class, its function, and all of its options, including those in closures."""
    digest = hashlib.sha256()
    digest.update(f"{type(sampler).__module__} {type(sampler).__qualname__}".encode())
    _walk(digest, getattr(sampler, "__dict__", {}))
    return digest.hexdigest()[:DIGITS]


def of_machine() -> dict[str, str]:
    """Versions and device, on which the last bits of a result depend."""
    device = comfy.model_management.get_torch_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"comfyui": comfyui, "torch": torch.__version__, "device": name}


def _walk(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
        for row in value if value.ndim > 3 else [value]:  # row by row, to avoid a copy of a whole video of hints
            _add(digest, row)
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            if key != "uuid":  # it changes with every run
                digest.update(str(key).encode())
                _walk(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _walk(digest, item)
    elif isinstance(value, str | int | float | bool | None):
        digest.update(repr(value).encode())
    elif isinstance(value, FunctionType):
        digest.update(f"{value.__module__} {value.__qualname__}".encode())
        _walk(digest, [value.__defaults__, value.__kwdefaults__, [_cell(cell) for cell in value.__closure__ or ()]])
    else:
        _object(digest, value)


def _object(digest: Any, value: Any) -> None:
    digest.update(type(value).__name__.encode())
    if hasattr(value, "cond_hint_original"):  # a ControlNet
        _walk(digest, [value.cond_hint_original, value.strength, value.timestep_percent_range])
        _walk(digest, [of_model(model) for model in _control_models(value)])
        _walk(digest, [value.previous_controlnet, getattr(value, "inner", None)])
    if hasattr(value, "rule"):  # how the image of a retention branch is resized
        _walk(digest, value.rule)
    if hasattr(value, "weights"):  # a LoRA, or the frames of our FrameControl
        _walk(digest, value.weights)


def _cell(cell: Any) -> Any:
    """The value of a closure's cell. Another function, which may be the function itself, is replaced by its name."""
    try:
        content = cell.cell_contents
    except ValueError:  # the variable has no value yet
        return None
    return content.__qualname__ if isinstance(content, FunctionType) else content


def _control_models(control: Any) -> Iterable[Any]:
    model = getattr(control, "control_model_wrapped", None)
    return [] if model is None else [model]


def _add(digest: Any, value: Tensor) -> None:
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
