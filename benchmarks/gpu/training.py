"""Steps of the trainer: each system at its paper's sizes with random weights, and an exactly resumed training."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ...training import registry
from ...training.data.latents import Latents
from ...training.engine.loop import Loop
from ...training.systems import artv, bases, dreamvideo, harivo, vidrd
from ...training.systems.dreamvideo_start import load_start
from . import machine
from .machine import Setup

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
# system -> its config with the paper's sizes, the pixels of a frame there, and the memory of a step in GB (an estimate)
SYSTEMS = {
    "harivo": ("harivo_sd15.toml", 256, 20.0),
    "vidrd": ("vidrd_sd21.toml", 256, 20.0),
    "dreamvideo": ("dreamvideo_sd21.toml", 256, 20.0),
    "artv": ("artv_sd21.toml", 320, 24.0),
}
SMALL = {"artv": "artv_pocket.toml"}  # with --tiny, where the paper's sizes do not fit the pocket
CLIPS = 4  # in the cache


def build(name: str, plan: Any, base: Any, cache: Latents) -> Any:
    """The task of a plan, as its system's `prepare` builds it, on latents in memory."""
    builders: dict[str, Callable[[], Any]] = {
        "harivo": lambda: harivo.HarivoTask(
            base, harivo.harivo_config(plan.model, base, plan.data.frames), plan, cache
        ),
        "vidrd": lambda: vidrd.VidrdTask(base, vidrd.vidrd_config(plan.model, base, plan.data.frames), plan, cache),
        "dreamvideo": lambda: dreamvideo.DreamVideoTask(base, load_start(plan, base), plan, cache),
        "artv": lambda: artv.ArtvTask(base, artv.artv_config(plan.model, base), plan, cache),
    }
    return builders[name]()


def read_plan(name: str, setup: Setup, out: Path, changes: list[str]) -> Any:
    file = SMALL.get(name, SYSTEMS[name][0]) if setup.tiny else SYSTEMS[name][0]
    settings = ['base.weights="random"', "samples.every=0", "train.batch=1", "train.micro=0", "train.warmup=1"]
    settings += ['train.precision="no"', "base.half=false"] if setup.cpu else []
    settings += ['base.kind="pocket"', "data.frames=4", 'model.start=""'] if setup.tiny else []
    return registry.read(CONFIGS / file, [*settings, *changes], out=out)


def random_cache(name: str, plan: Any, setup: Setup, base: Any) -> Latents:
    """Latents of random clips, with captions and first frames."""
    pixels = 64 if setup.tiny else SYSTEMS[name][1]
    side = pixels // base.config.downscale
    draw = torch.Generator().manual_seed(7)
    frames = plan.data.frames
    values = torch.randn(CLIPS, frames, 4, side, side, generator=draw).half()
    images = torch.randint(0, 256, (CLIPS, 3, pixels, pixels), generator=draw, dtype=torch.uint8)
    captions = [f"clip number {i}" for i in range(CLIPS)]
    return Latents(values, [i / frames for i in range(frames)], 0, captions, images=images)


def tokenizer() -> Path:
    return Path(os.environ["COMFYUI_DIR"]) / "comfy" / "sd1_tokenizer"


def loop_of(name: str, setup: Setup, out: Path, changes: list[str]) -> tuple[Loop, Any]:
    """The loop of a training and its base."""
    plan = read_plan(name, setup, out, changes)
    base = bases.load(plan.base, tokenizer())
    torch.manual_seed(0)
    return Loop(build(name, plan, base, random_cache(name, plan, setup, base)), plan.train), base


def step_seconds(loop: Loop, setup: Setup) -> float:
    """Median seconds of a step; two that are not counted warm up."""
    seconds = []
    for _ in range(2 + (1 if setup.tiny else 3)):
        machine.synchronise(setup)
        begin = time.monotonic()
        loop.advance()
        machine.synchronise(setup)
        seconds.append(time.monotonic() - begin)
    return sorted(seconds[2:])[len(seconds[2:]) // 2]


def training(setup: Setup) -> dict[str, Any]:
    """A step on one clip of each system: with and without checkpointing, and with 8-bit AdamW where it is installed."""
    figures: dict[str, Any] = {}
    for name, (_, _, gigabytes) in SYSTEMS.items():
        try:
            machine.require_memory(setup, 0.5 if setup.tiny else gigabytes)
        except machine.Skipped as reason:
            figures[f"{name}_skipped"] = str(reason)
            continue
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            figures |= steps_of(name, setup, Path(folder))
        if not setup.cpu:
            torch.cuda.empty_cache()
    return figures


def steps_of(name: str, setup: Setup, out: Path) -> dict[str, Any]:
    """The figures of one system."""
    figures: dict[str, Any] = {}
    loop, base = loop_of(name, setup, out, ["train.steps=100", "base.checkpointing=true"])
    figures[f"{name}_trained_millions"] = sum(p.numel() for p in loop.params) / 1e6
    kinds = ["checkpointing", "no_checkpointing"]
    with contextlib.suppress(ImportError):
        if not setup.cpu:
            import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]

            kinds.append("adamw_8bit")
    for kind in kinds:
        if kind == "no_checkpointing":
            base.unet.disable_gradient_checkpointing()
        if kind == "adamw_8bit":
            base.unet.enable_gradient_checkpointing()
            use_8bit(loop)
        try:
            with losses_of(loop.task, kind, figures), machine.peak(setup, figures, f"{name}_{kind}_peak_gb"):
                figures[f"{name}_{kind}_seconds"] = step_seconds(loop, setup)
        except torch.cuda.OutOfMemoryError:
            figures[f"{name}_{kind}_skipped"] = f"out of memory, {machine.free_gb(setup):.1f} GB are free"
    return figures


@contextlib.contextmanager
def losses_of(task: Any, kind: str, figures: dict[str, Any]) -> Iterator[None]:
    """HARIVO's L_reg and L_TRS cannot be computed again for checkpointing; without them the step is shorter."""
    if not isinstance(task, harivo.HarivoTask) or kind == "no_checkpointing":
        yield
        return
    weights = dict(task.weights)
    task.weights |= {"reg": 0.0, "trs": 0.0}
    figures[f"harivo_{kind}_without"] = "L_reg and L_TRS"
    try:
        yield
    finally:
        task.weights |= weights


def use_8bit(loop: Loop) -> None:
    """AdamW with states in 8 bits, from bitsandbytes, in the place of torch's."""
    import bitsandbytes  # pyright: ignore[reportMissingImports]

    group = loop.optimizer.param_groups[0]
    options = {"betas": group["betas"], "weight_decay": group["weight_decay"]}
    loop.optimizer = bitsandbytes.optim.AdamW8bit(loop.params, lr=group["lr"], **options)


def resume(setup: Setup) -> dict[str, Any]:
    """Two steps of VidRD on a random pocket, and one step, saved and resumed by another loop for the second: equal."""
    tiny = Setup(cpu=setup.cpu, tiny=True)
    changes = ["train.steps=2", "train.batch=2"]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            whole, _ = loop_of("vidrd", tiny, Path(folder) / "whole", changes)
            for _ in range(2):
                whole.advance()
            first, _ = loop_of("vidrd", tiny, Path(folder) / "parts", changes)
            first.advance()
            first.save()
            second, _ = loop_of("vidrd", tiny, Path(folder) / "parts", changes)
            resumed_step = second.step
            second.advance()
            pairs = zip(whole.params, second.params, strict=True)
            difference = max((a - b).abs().max().item() for a, b in pairs)
    finally:
        torch.use_deterministic_algorithms(False)
    figures = {"resumed_at_step": resumed_step, "largest_difference": difference}
    return machine.check(figures, {"resumed_at_step": (">=", 1), "largest_difference": ("<=", 0.0)})
