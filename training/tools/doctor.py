"""What a training needs, measured before it starts: versions, sizes, memory, time per step, cost of each loss."""

import logging
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

from ..engine.loop import Loop
from ..engine.task import SystemTask, WeightedTask
from ..plans.common import BasePlan

log = logging.getLogger(__name__)
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "tensorboard")
STEPS = 3


def examine(plan: BasePlan, task: SystemTask) -> dict[str, float]:
    """Log the report on a task that is ready to be trained; returns its figures. Nothing is written."""
    log.info("Python %s, %s", platform.python_version(), ", ".join(f"{n} {_version(n)}" for n in PACKAGES))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    log.info("device: %s", device)
    if torch.cuda.is_available():
        task.to("cuda")
    figures = sizes(task, average=bool(plan.train.ema))
    first = task.first_sample()
    samples = list(range(first, first + (plan.train.micro or plan.train.batch)))
    log.info("data: %s", task.data_summary())
    figures["loader_clips_per_second"] = len(samples) / _seconds(lambda: task.draw(samples))
    log.info("data loading: %.1f samples per second", figures["loader_clips_per_second"])
    if isinstance(task, WeightedTask):
        figures |= term_gradients(task, samples)
        figures |= term_seconds(task, samples)
    else:
        figures |= loss_gradients(task, samples)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(task, replace(plan.train, out=Path(folder)))
        figures["seconds_per_step"] = _seconds(loop.advance)
    figures["memory_gb"] = memory_gb()
    log.info("a complete step of %d samples: %.2f s on one process", plan.train.batch, figures["seconds_per_step"])
    log.info("peak memory: %.2f GB", figures["memory_gb"])
    return figures


def trained_parts(task: SystemTask) -> dict[str, list[nn.Parameter]]:
    """The trained parameters, by part."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(task.part_of(name), []).append(parameter)
    return parts


def sizes(task: SystemTask, *, average: bool) -> dict[str, float]:
    """Numbers of parameters in millions. base_frozen: the frozen parameters of the image model's network."""
    frozen = [p for p in task.base_network().parameters() if not p.requires_grad]
    trained = trained_parts(task)
    parts = {"base_frozen": frozen, **trained} if frozen else trained
    counts = {f"parameters_{name}_m": sum(p.numel() for p in part) / 1e6 for name, part in parts.items()}
    total = sum(p.numel() for part in trained.values() for p in part) / 1e6
    for name, count in counts.items():
        log.info("%s: %.2f", name, count)
    # weights, gradients, two moments and the average, in fp32
    size, suffix = (20, " and average") if average else (16, "")
    log.info("trained: %.2f M parameters, %.2f GB with gradients, AdamW%s", total, total * size / 1e3, suffix)
    return counts | {"parameters_trained_m": total}


def term_gradients(task: WeightedTask, samples: list[int]) -> dict[str, float]:
    """The value of each term, and the norm of its weighted gradient on each part."""
    task.warm_up(samples)
    terms, _ = task.terms(samples)
    task.after_step(False)
    figures = {}
    for name, term in terms.items():
        figures[f"value_{name}"] = float(term.detach())
        norms = gradient_norms(task, task.weights[name] * term)
        figures |= {f"gradient_{name}_{part}": norm for part, norm in norms.items()}
        text = ", ".join(f"{part} {norm:.3g}" for part, norm in norms.items())
        value = figures[f"value_{name}"]
        log.info("%s: %.4g; weight %g; norm of the weighted gradient on %s", name, value, task.weights[name], text)
    return figures


def loss_gradients(task: SystemTask, samples: list[int]) -> dict[str, float]:
    """The value of the loss, the norm of its gradient on each part, and seconds of forward and backward."""
    losses = task(samples)
    norms = gradient_norms(task, losses["loss"])
    figures = {f"value_{name}": float(value.detach()) for name, value in losses.items()}
    figures |= {f"gradient_{part}": norm for part, norm in norms.items()}
    text = ", ".join(f"{part} {norm:.3g}" for part, norm in norms.items())
    log.info("loss: %.4g; norm of the gradient on %s", figures["value_loss"], text)

    def step() -> None:
        task(samples)["loss"].backward()
        task.zero_grad(set_to_none=True)

    figures["seconds_loss"] = _seconds(step)
    log.info("seconds of forward and backward for %d samples: %.2f", len(samples), figures["seconds_loss"])
    return figures


def gradient_norms(task: SystemTask, loss: Tensor) -> dict[str, float]:
    """The norm of the gradient on each trained part."""
    parts = trained_parts(task)
    params = [(part, p) for part, parameters in parts.items() for p in parameters]
    grads = torch.autograd.grad(loss, [p for _, p in params], retain_graph=True, allow_unused=True)
    squares = dict.fromkeys(parts, 0.0)
    for (part, _), grad in zip(params, grads, strict=True):
        squares[part] += 0.0 if grad is None else float(grad.float().square().sum())
    return {part: square**0.5 for part, square in squares.items()}


def term_seconds(task: WeightedTask, samples: list[int]) -> dict[str, float]:
    """Seconds of forward and backward: of the first term alone, and the additional seconds of each other term."""
    weights, figures = task.weights, {}

    def step() -> None:
        task(samples)["loss"].backward()
        task.zero_grad(set_to_none=True)
        task.after_step(False)

    first, *others = weights
    for name in (first, *(n for n in others if weights[n])):
        task.weights = {n: w if n in (first, name) else 0.0 for n, w in weights.items()}
        figures[f"seconds_{name}"] = _seconds(step)
    task.weights = weights
    for name in list(figures)[1:]:
        figures[name] -= figures[f"seconds_{first}"]
    text = ", ".join(f"{name.removeprefix('seconds_')} {value:.2f}" for name, value in figures.items())
    log.info("seconds of forward and backward for %d clips, in addition to %s: %s", len(samples), first, text)
    return figures


def memory_gb() -> float:
    """Peak memory in GB: of the GPU if there is one, else of this process (0 where the system does not report it)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _seconds(work: Callable[[], object]) -> float:
    """The median time of a few calls, after one warm-up call."""
    times = []
    for _ in range(STEPS + 1):
        start_time = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start_time)
    return sorted(times[1:])[STEPS // 2]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
