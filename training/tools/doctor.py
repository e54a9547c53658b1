"""What a run will need, before it is begun: versions, sizes, memory, seconds a step, what each loss costs and pulls."""

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
    log.info("samples as the model takes them: %.1f a second", figures["loader_clips_per_second"])
    if isinstance(task, WeightedTask):
        figures |= pulls(task, samples)
        figures |= costs(task, samples)
    else:
        figures |= pull(task, samples)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(task, replace(plan.train, out=Path(folder)))
        figures["seconds_per_step"] = _seconds(loop.advance)
    figures["memory_gb"] = memory_gb()
    log.info("a whole step of %d samples: %.2f s on one process", plan.train.batch, figures["seconds_per_step"])
    log.info("largest memory so far: %.2f GB", figures["memory_gb"])
    return figures


def trained_parts(task: SystemTask) -> dict[str, list[nn.Parameter]]:
    """The parameters that learn, by part."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(task.part_of(name), []).append(parameter)
    return parts


def sizes(task: SystemTask, *, average: bool) -> dict[str, float]:
    """Numbers of parameters, in millions. base_frozen: those of the image model's network that do not learn."""
    frozen = [p for p in task.base_network().parameters() if not p.requires_grad]
    learning = trained_parts(task)
    parts = {"base_frozen": frozen, **learning} if frozen else learning
    counts = {f"parameters_{name}_m": sum(p.numel() for p in part) / 1e6 for name, part in parts.items()}
    trained = sum(p.numel() for part in learning.values() for p in part) / 1e6
    for name, count in counts.items():
        log.info("%s: %.2f", name, count)
    # weights, gradients, two moments and the average, in fp32
    size, extra = (20, " and average") if average else (16, "")
    log.info("trained: %.2f M parameters, %.2f GB with gradients, AdamW%s", trained, trained * size / 1e3, extra)
    return counts | {"parameters_trained_m": trained}


def pulls(task: WeightedTask, samples: list[int]) -> dict[str, float]:
    """Value of each term and the length of its gradient, weighted, on each part: what the weights of the losses do."""
    task.warm_up(samples)
    terms, _ = task.terms(samples)
    task.stepped(False)
    figures = {}
    for name, term in terms.items():
        figures[f"value_{name}"] = float(term.detach())
        lengths = gradients(task, task.weights[name] * term)
        figures |= {f"gradient_{name}_{part}": length for part, length in lengths.items()}
        shown = ", ".join(f"{part} {length:.3g}" for part, length in lengths.items())
        value = figures[f"value_{name}"]
        log.info("%s: %.4g; weight %g; weighted gradient on %s", name, value, task.weights[name], shown)
    return figures


def pull(task: SystemTask, samples: list[int]) -> dict[str, float]:
    """Value of the whole loss, the length of its gradient on each part, and seconds of forward and backward."""
    out = task(samples)
    lengths = gradients(task, out["loss"])
    figures = {f"value_{name}": float(value.detach()) for name, value in out.items()}
    figures |= {f"gradient_{part}": length for part, length in lengths.items()}
    shown = ", ".join(f"{part} {length:.3g}" for part, length in lengths.items())
    log.info("loss: %.4g; gradient on %s", figures["value_loss"], shown)

    def step() -> None:
        task(samples)["loss"].backward()
        task.zero_grad(set_to_none=True)

    figures["seconds_loss"] = _seconds(step)
    log.info("seconds of forward and backward for %d samples: %.2f", len(samples), figures["seconds_loss"])
    return figures


def gradients(task: SystemTask, loss: Tensor) -> dict[str, float]:
    """Length of the gradient on each trained part."""
    parts = trained_parts(task)
    named = [(part, p) for part, parameters in parts.items() for p in parameters]
    grads = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    squares = dict.fromkeys(parts, 0.0)
    for (part, _), grad in zip(named, grads, strict=True):
        squares[part] += 0.0 if grad is None else float(grad.float().square().sum())
    return {part: square**0.5 for part, square in squares.items()}


def costs(task: WeightedTask, samples: list[int]) -> dict[str, float]:
    """Seconds of forward and backward of the first term alone, and what each other term adds."""
    given, figures = task.weights, {}

    def step() -> None:
        task(samples)["loss"].backward()
        task.zero_grad(set_to_none=True)
        task.stepped(False)

    first, *others = given
    for name in (first, *(n for n in others if given[n])):
        task.weights = {n: w if n in (first, name) else 0.0 for n, w in given.items()}
        figures[f"seconds_{name}"] = _seconds(step)
    task.weights = given
    for name in list(figures)[1:]:
        figures[name] -= figures[f"seconds_{first}"]
    shown = ", ".join(f"{name.removeprefix('seconds_')} {value:.2f}" for name, value in figures.items())
    log.info(
        "seconds of forward and backward for %d clips, the other terms on top of %s: %s", len(samples), first, shown
    )
    return figures


def memory_gb() -> float:
    """The most memory that was held: of the GPU where there is one, else of this process (0 where that is not told)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _seconds(work: Callable[[], object]) -> float:
    """The median of a few times, after one to warm up."""
    times = []
    for _ in range(STEPS + 1):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return sorted(times[1:])[STEPS // 2]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
