"""ComfyUI's ways to load weights: each but the normal one in a process of its own, as ComfyUI chooses at its import.

Run as a module, this is such a process: it samples the pocket with a motion model and a LoRA, and unloads everything.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from . import machine
from .machine import Failed, Setup

MODES = ("lowvram", "novram", "dynamic")
TOLERANCE = 0.05  # relative error of latents: weights with a LoRA are rounded at another place when they are offloaded
LEFT_GB = 0.02  # memory of tensors after unloading; the models have 0.03


def loading(setup: Setup) -> dict[str, Any]:
    """Latents of each mode against the normal one; all weights are on the processor again, and the memory is free."""
    modes = ("novram",) if setup.cpu else MODES
    figures: dict[str, Any] = {}
    limits: dict[str, tuple[str, float]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        latents = {}
        for mode in ("normal", *modes):
            file = Path(folder) / f"{mode}.pt"
            outcome = measure(setup, file) if mode == "normal" else child(mode, file, setup)
            if "skipped" in outcome:
                figures[f"{mode}_skipped"] = outcome["skipped"]
                continue
            latents[mode] = torch.load(file, weights_only=True)
            figures |= {f"{mode}_{name}": value for name, value in outcome.items()}
            limits[f"{mode}_lora_changes"] = (">=", 0.01)
            limits[f"{mode}_weights_left_on_gpu"] = ("<=", 0)
            limits[f"{mode}_left_gb"] = ("<=", LEFT_GB)
    for mode in latents.keys() - {"normal"}:
        figures[f"{mode}_against_normal"] = machine.relative_error(latents[mode], latents["normal"])
        limits[f"{mode}_against_normal"] = ("<=", TOLERANCE)
    return machine.check(figures, limits)


def child(mode: str, file: Path, setup: Setup) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", f"{__package__}.loading", mode, str(file)]
    command += ["--cpu"] * setup.cpu + ["--tiny"] * setup.tiny
    ended = subprocess.run(command, env=os.environ.copy(), capture_output=True, text=True, timeout=240, check=False)
    if ended.returncode:
        raise Failed(f"loading with {mode} ended with {ended.returncode}: {ended.stderr.strip()[-400:]}", {})
    return json.loads(ended.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("file", type=Path)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    setup = Setup(cpu=options.cpu, tiny=options.tiny)
    torch.set_num_threads(1) if setup.cpu else None
    reason = start(options.mode, setup)
    figures = {"skipped": reason} if reason else measure(setup, options.file)
    print(json.dumps(figures))


def start(mode: str, setup: Setup) -> str:
    """Import ComfyUI in this mode; the reason why it is not possible, or ""."""
    if mode == "dynamic":
        return start_dynamic(setup)
    machine.start(setup, lowvram=mode == "lowvram", novram=mode == "novram")
    return ""


def start_dynamic(setup: Setup) -> str:
    """Dynamic VRAM, switched on as ComfyUI's main.py does it: comfy-aimdo starts before ComfyUI touches the card."""
    import comfy_aimdo.control

    try:
        comfy_aimdo.control.init(simple_vram_headroom=None, nvml_pressure=True)
    except TypeError:
        comfy_aimdo.control.init()
    machine.start(setup)
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher
    from comfy.cli_args import args

    devices = comfy.model_management.get_all_torch_devices()
    headroom = int(getattr(args, "vram_headroom", 0) * 1024**3)
    try:
        ready = comfy_aimdo.control.init_devices((device.index or 0, headroom) for device in devices)
    except TypeError:
        ready = comfy_aimdo.control.init_devices(device.index or 0 for device in devices)
    if not ready:
        return "comfy-aimdo does not support this device"
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic  # type: ignore[misc]
    comfy.memory_management.aimdo_enabled = True
    return ""


def measure(setup: Setup, file: Path) -> dict[str, Any]:
    """Sample with and without a LoRA, unload everything, and look where the weights are."""
    from comfy import model_management

    from ..common.pocket_host import LORA
    from .systems import HARIVO, TEXT, Systems, load_host

    square = torch.ones(64, 64, device=setup.device)
    _ = square @ square  # cuBLAS allocates its workspace, and keeps it
    before = machine.allocated_gb(setup)
    host = load_host("fp32" if setup.cpu else "fp16")
    systems = Systems(host, setup)
    model = host.motion(HARIVO, frames=systems.frames)
    plain = systems.moving(HARIVO, model=model, text=TEXT)
    with_lora: Any = host.lora(LORA, model=model)
    latents = systems.moving(HARIVO, model=with_lora, text=TEXT)
    state, loaded = model_management.vram_state.name, with_lora.loaded_size() / machine.GB
    torch.save(latents.float().cpu(), file)
    model_management.unload_all_models()
    model_management.soft_empty_cache()
    gc.collect()
    networks = [host.model.model, *(patcher.model for patcher in model.get_nested_additional_models())]
    return {
        "state": state,
        "loaded_gb": loaded,
        "lora_changes": (latents - plain).abs().max().item(),
        "weights_left_on_gpu": sum(weight.is_cuda for network in networks for weight in network.parameters()),
        "left_gb": machine.allocated_gb(setup) - before,
    }


if __name__ == "__main__":
    main()
