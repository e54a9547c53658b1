"""The device, what a part needs of it, and how time and memory are measured on it."""

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

GB = 1e9
# The packages that the command imports: what a machine with torch usually has, and what ComfyUI's `comfy` needs.
PACKAGES = (
    *(
        "torch",
        "torchvision",
        "torchaudio",
        "transformers",
        "accelerate",
        "safetensors",
        "einops",
        "numpy",
        "scipy",
        "PIL",
        "tqdm",
    ),
    *("psutil", "yaml", "aiohttp", "diffusers", "torchsde", "comfy_kitchen", "comfy_aimdo"),
)
WHEELS = {"PIL": "pillow", "yaml": "pyyaml", "comfy_kitchen": "comfy-kitchen", "comfy_aimdo": "comfy-aimdo"}


class Skipped(Exception):
    """A part cannot run here; the message says why, with the figure."""


class Failed(Exception):
    """A part ran, and a result is outside its tolerance; `figures` are those of the whole part."""

    def __init__(self, text: str, figures: dict[str, Any]) -> None:
        super().__init__(text)
        self.figures = figures


@dataclass(frozen=True)
class Setup:
    """What the user asked for."""

    cpu: bool = False
    tiny: bool = False
    evolved: Path | None = None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.cpu else "cuda:0")  # as ComfyUI names it

    @property
    def rounds(self) -> int:
        """Timed calls of each kind; the median counts."""
        return 2 if self.tiny else 10


def has_cuda() -> bool:
    return torch.cuda.is_available()


def start(setup: Setup, **options: Any) -> None:
    """Import ComfyUI with options of its command line; it reads them when it is imported.

    On a processor it gets torch's attention, which it uses on NVIDIA's cards.
    """
    from ..common.pocket_host import start_comfyui

    start_comfyui(cpu=setup.cpu)
    from comfy.cli_args import args

    vars(args).update(options)
    args.use_pytorch_cross_attention |= setup.cpu
    import comfy.model_management  # noqa: F401


def missing_packages() -> list[str]:
    """The packages that are needed and not installed, by the names of their wheels."""
    return [WHEELS.get(name, name) for name in PACKAGES if importlib.util.find_spec(name) is None]


def describe(setup: Setup) -> dict[str, Any]:
    """The device and the versions, for the results."""
    import platform

    facts: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    if setup.cpu:
        return facts | {"device": f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"}
    properties = torch.cuda.get_device_properties(0)
    return facts | {
        "device": properties.name,
        "memory_gb": properties.total_memory / GB,
        "cuda": torch.version.cuda,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
    }


def free_gb(setup: Setup) -> float:
    """Free memory of the device in 10^9 bytes."""
    if setup.cpu:
        import psutil

        return psutil.virtual_memory().available / GB
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(0)[0] / GB


def require_memory(setup: Setup, gigabytes: float) -> None:
    """Skipped when the device has less free memory than a part needs."""
    free = free_gb(setup)
    if free < gigabytes:
        raise Skipped(f"it needs {gigabytes:.1f} GB of free memory and {free:.1f} GB are free")


def synchronise(setup: Setup) -> None:
    if not setup.cpu:
        torch.cuda.synchronize()


class Timer:
    """Seconds of pieces of work, by CUDA events, or as processor time on a CPU."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.marks: list[tuple[Any, Any]] = []

    def call(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do the work, and remember when it began and ended."""
        if self.setup.cpu:
            begin = time.process_time()
            result = work(*args, **kwargs)
            self.marks.append((begin, time.process_time()))
            return result
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = work(*args, **kwargs)
        end.record()
        self.marks.append((begin, end))
        return result

    def seconds(self) -> list[float]:
        synchronise(self.setup)
        if self.setup.cpu:
            return [end - begin for begin, end in self.marks]
        return [begin.elapsed_time(end) / 1000 for begin, end in self.marks]

    def median(self, warm_up: int = 1) -> float:
        """Median without the first `warm_up` calls."""
        return median(self.seconds()[warm_up:])


def median_seconds(setup: Setup, work: Callable[[], Any], warm_up: int = 2) -> float:
    """Median seconds of the work over the rounds, after some that are not timed."""
    timer = Timer(setup)
    for _ in range(warm_up + setup.rounds):
        timer.call(work)
    return timer.median(warm_up)


def allocated_gb(setup: Setup) -> float:
    """Memory of tensors on the GPU; 0 on a CPU."""
    return 0.0 if setup.cpu else torch.cuda.memory_allocated() / GB


@contextmanager
def peak(setup: Setup, figures: dict[str, Any], name: str) -> Iterator[None]:
    """Store the peak memory of the tensors on the GPU within the block, in 10^9 bytes; nothing on a CPU."""
    if setup.cpu:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.synchronize()
    figures[name] = torch.cuda.max_memory_allocated() / GB


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in 0..1; 99 for equal ones. NaN counts as 0 dB."""
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return 0.0
    error = (a.double() - b.double()).square().mean().item()
    return min(99.0, -10 * torch.log10(torch.tensor(max(error, 1e-12))).item())


def relative_error(a: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference over that of the reference; infinite with NaN."""
    difference = (a.double().cpu() - reference.double().cpu()).square().mean().sqrt()
    error = (difference / reference.double().cpu().square().mean().sqrt()).item()
    return float("inf") if math.isnan(error) else error


def check(figures: dict[str, Any], limits: dict[str, tuple[str, float]]) -> dict[str, Any]:
    """The figures with their tolerances, name -> ("<=" or ">=", limit). Failed when one is outside."""
    figures = figures | {"tolerances": {name: f"{sign} {limit:g}" for name, (sign, limit) in limits.items()}}
    outside = [
        f"{name} is {figures[name]:.3g}, not {sign} {limit:g}"
        for name, (sign, limit) in limits.items()
        if not (figures[name] <= limit if sign == "<=" else figures[name] >= limit)
    ]
    if outside:
        raise Failed("; ".join(outside), figures)
    return figures
