"""Our modules, each alone with random weights: precision, attention kernels, two streams.

Every module is hosted as in ComfyUI, with its layers (which cast weights) and its attention.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...model_patches.artv.anchor import AnchorBlock
from ...model_patches.core.temporal import MotionModule, sdpa
from ...model_patches.harivo.config import MappingConfig
from ...model_patches.harivo.mapping import MappingNetwork
from ...model_patches.vidrd.layers import TemporalAttention, TemporalConv
from . import machine
from .machine import Setup, Skipped

# relative error of the output against fp32 on the same device
TOLERANCES = {"fp16": 0.01, "bf16": 0.06, "fp8": 0.2}
FP32_TOLERANCE = 1e-4  # of the device against the processor


@dataclass(frozen=True)
class Subject:
    """A module and its inputs, in fp32 on the processor."""

    module: nn.Module
    call: Callable[[Any, Tensor], Tensor]
    x: Tensor


def subjects(setup: Setup) -> dict[str, Subject]:
    from ...model_patches.comfy_host.base.ops import operations
    from ...model_patches.comfy_host.motion.files import attention

    parts: dict[str, Any] = {"ops": operations, "attention": attention}
    channels, size, frames = (64, 4, 4) if setup.tiny else (320, 32, 16)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2 * frames, channels, size, size, generator=draw)
    tokens = images.flatten(2).transpose(1, 2).contiguous()
    latents = torch.randn(2 * frames, 4, size, size, generator=draw)
    memory = torch.randn(2 * frames, 16, channels, generator=draw)

    def update(module: Any, x: Tensor) -> Tensor:
        return module.update(x, frames)

    networks: dict[str, tuple[nn.Module, Callable[[Any, Tensor], Tensor], Tensor]] = {
        "motion": (MotionModule(channels, heads=8, **parts), update, images),
        "temp_conv": (TemporalConv(channels, layers=4, ops=operations), update, images),
        "temp_attention": (TemporalAttention(channels, heads=8, **parts), update, tokens),
        "mapping": (MappingNetwork(MappingConfig(), **parts), update, latents),
        "anchor": (AnchorBlock(channels, channels, 8, **parts), lambda m, x: m(x, memory.to(x)), images),
    }
    return {name: Subject(with_weights(module).eval(), call, x) for name, (module, call, x) in networks.items()}


def with_weights(module: nn.Module) -> nn.Module:
    """Random weights, as after training: no layer is zero or neutral."""
    generator = torch.Generator().manual_seed(1)
    for weight in module.parameters():
        weight.requires_grad_(False)
        deviation = 1 / max(1, weight[0].numel()) ** 0.5 if weight.ndim > 1 else 0.1
        start = 0.0 if weight.ndim > 1 else torch.ones_like(weight)
        weight.copy_(start + deviation * torch.randn(weight.shape, generator=generator))
    return module


def output(subject: Subject, device: torch.device, weights: torch.dtype, inputs: torch.dtype) -> Tensor:
    """The module's output with weights and inputs of these types; the module is fp32 on the processor again."""
    original = {name: value.detach().clone() for name, value in subject.module.state_dict().items()}
    try:
        subject.module.to(device)
        for parameter in subject.module.parameters():
            parameter.data = parameter.data.to(weights)
        with torch.inference_mode():
            return subject.call(subject.module, subject.x.to(device, inputs)).float().cpu()
    finally:
        subject.module.float().cpu()
        subject.module.load_state_dict(original)


def modules(setup: Setup) -> dict[str, Any]:
    """Each module in fp16, in bf16, and with fp8 weights and fp16 inputs, against fp32."""
    device, fp32 = setup.device, torch.float32
    kinds = {"fp16": (torch.float16, torch.float16), "bf16": (torch.bfloat16, torch.bfloat16)}
    if hasattr(torch, "float8_e4m3fn"):
        kinds["fp8"] = (torch.float8_e4m3fn, torch.float16)
    figures: dict[str, Any] = {}
    limits: dict[str, tuple[str, float]] = {}
    torch.backends.cudnn.allow_tf32 = False  # the reference is full precision
    for name, subject in subjects(setup).items():
        reference = output(subject, device, fp32, fp32)
        if not setup.cpu:
            processor = output(subject, torch.device("cpu"), fp32, fp32)
            figures[f"{name}_fp32_against_processor"] = machine.relative_error(reference, processor)
            limits[f"{name}_fp32_against_processor"] = ("<=", FP32_TOLERANCE)
        for kind, (weights, inputs) in kinds.items():
            figures[f"{name}_{kind}"] = machine.relative_error(output(subject, device, weights, inputs), reference)
            limits[f"{name}_{kind}"] = ("<=", TOLERANCES[kind])
    return machine.check(figures, limits)


def attention_backends(setup: Setup) -> dict[str, Any]:
    """The motion module in fp16 with each of torch's attention kernels, against its plain mathematics in fp32."""
    channels, size, frames = (64, 4, 4) if setup.tiny else (320, 32, 16)
    module: Any = with_weights(MotionModule(channels, heads=8, attention=sdpa)).eval().to(setup.device)
    x = torch.randn(frames, channels, size, size, generator=torch.Generator().manual_seed(0)).to(setup.device)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        reference = module.update(x, frames)
    half, figures, limits = module.half(), {}, {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        name = backend.name.lower()
        try:
            with torch.inference_mode(), sdpa_kernel(backend):
                result = half.update(x.half(), frames)
        except RuntimeError as error:
            figures[f"{name}_unavailable"] = str(error).partition("\n")[0][:120]
            continue
        figures[name] = machine.relative_error(result, reference)
        limits[name] = ("<=", TOLERANCES["fp16"])
        figures[f"{name}_seconds"] = machine.median_seconds(setup, lambda b=backend: _update(half, x.half(), frames, b))
    return machine.check(figures, limits)


def _update(module: Any, x: Tensor, frames: int, backend: SDPBackend) -> Tensor:
    with torch.inference_mode(), sdpa_kernel(backend):
        return module.update(x, frames)


def two_streams(setup: Setup) -> dict[str, Any]:
    """Two clips through one hosted module on two CUDA streams (two threads on a processor), equal to one by one."""
    subject = subjects(setup)["motion"]
    module = subject.module.to(setup.device)
    clips = [subject.x.to(setup.device), subject.x.flip(0).contiguous().to(setup.device)]
    with torch.inference_mode():
        alone = [subject.call(module, x) for x in clips]
    machine.synchronise(setup)
    results: list[Any] = [None, None]
    streams = [None, None] if setup.cpu else [torch.cuda.Stream(), torch.cuda.Stream()]

    def work(i: int) -> None:
        with torch.inference_mode():
            if streams[i] is None:
                results[i] = subject.call(module, clips[i])
                return
            with torch.cuda.stream(streams[i]):
                for _ in range(5):
                    results[i] = subject.call(module, clips[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    machine.synchronise(setup)
    if any(result is None for result in results):
        raise Skipped("a thread ended without a result")
    figures = {"largest_difference": max((a - b).abs().max().item() for a, b in zip(alone, results, strict=True))}
    return machine.check(figures, {"largest_difference": ("<=", 0.0 if setup.cpu else 1e-5)})
