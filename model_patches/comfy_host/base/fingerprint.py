"""Short hashes of the inputs of a video: equal if nothing changed, even after a restart of ComfyUI.

The hash of a model covers every byte of its weights and everything that is patched onto it. A cryptographic hash of
gigabytes would take longer than a clip, so large tensors are reduced first: to the sums of their 8-byte words in
blocks, and to every 1024th word as it is. A merge, a LoRA or further training changes almost every word, and a change
of a single one changes a sum. ComfyUI merges LoRAs into the weights of a loaded model, so ComfyUI's backup of the
original weights is hashed instead.
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
LARGE = 2**16  # bytes of a tensor from which it is reduced
BLOCK = 2**13  # bytes whose words are added up
EVERY = 1024  # words


def of_model(patcher: Any) -> str:
    """Hash of a ModelPatcher: its weights, patches and additional models (motion models)."""
    digest = hashlib.sha256()
    weights = dict(
        patcher.model.named_parameters()
    )  # without the noise levels, which a patch replaces while the model is loaded
    for name in sorted(weights):
        backup = patcher.backup.get(name)
        weight = weights[name] if backup is None else backup.weight
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
        _add(digest, value)
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
    """Add the content of a tensor; of a quantised one, the tensors that it consists of."""
    if hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
            _add(digest, getattr(value, name))
    elif value.device.type != "meta":
        data = value.detach().contiguous().reshape(-1).view(torch.uint8)
        if data.numel() > LARGE:
            blocks, data = data.split([data.numel() // BLOCK * BLOCK, data.numel() % BLOCK])
            blocks = (blocks if blocks.storage_offset() % 8 == 0 else blocks.clone()).view(torch.int64)
            for part in (blocks.view(-1, BLOCK // 8).sum(1), blocks[::EVERY]):
                digest.update(part.cpu().contiguous().numpy())
        digest.update(data.cpu().numpy())
