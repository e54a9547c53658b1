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

from . import artv, dreamvideo, harivo
from .artv import ArtvTask
from .config import ArtvPlan, DreamVideoPlan, Plan
from .dreamvideo import DreamVideoTask
from .engine import Loop
from .harivo import HarivoTask

log = logging.getLogger(__name__)
Examined = HarivoTask | ArtvTask | DreamVideoTask
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "tensorboard")
STEPS = 3


def examine(plan: Plan | ArtvPlan | DreamVideoPlan, tokenizer: Path) -> dict[str, float]:
    """Log the report and return its figures. Nothing of the run's folder is touched."""
    log.info("Python %s, %s", platform.python_version(), ", ".join(f"{n} {_version(n)}" for n in PACKAGES))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    log.info("device: %s", device)
    task = prepared(plan, tokenizer)
    if torch.cuda.is_available():
        task.to("cuda")
    log.info("data: %d clips of %d frames, latents %s", len(task.cache), len(task.cache.times), task.cache.shape)
    figures = sizes(task)
    samples = list(range(plan.train.micro or plan.train.batch))
    figures["loader_clips_per_second"] = len(samples) / _seconds(lambda: task.draw(samples))
    log.info("loader, captions and text encoder: %.1f samples/s", figures["loader_clips_per_second"])
    if isinstance(task, HarivoTask):
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


def prepared(plan: Plan | ArtvPlan | DreamVideoPlan, tokenizer: Path) -> Examined:
    """The task of a config, on the CPU."""
    if isinstance(plan, ArtvPlan):
        return artv.prepare(plan, tokenizer)[0]
    if isinstance(plan, DreamVideoPlan):
        return dreamvideo.prepare(plan, tokenizer)[0]
    return harivo.prepare(plan, tokenizer)[0]


def trained_parts(task: Examined) -> dict[str, nn.Module]:
    """What learns, by name."""
    if isinstance(task, DreamVideoTask):
        learning: dict[str, nn.Module] = {"branch": task.branch, "motion": task.motion}
        return {name: part for name, part in learning.items() if name == "branch" or task.config.motion}
    if isinstance(task, ArtvTask):
        return dict(task.artv.named_children()) | ({"unet": task.unet} if task.plan.model.unet else {})
    return dict(task.harivo.named_children()) | ({"head": task.head} if task.head is not None else {})


def sizes(task: Examined) -> dict[str, float]:
    """Numbers of parameters, in millions; of a part that learns those that do."""
    learning = trained_parts(task)
    counts = {n: sum(p.numel() for p in m.parameters() if p.requires_grad) for n, m in learning.items()}
    frozen = {} if "unet" in learning else {"base_frozen": sum(p.numel() for p in task.unet.parameters())}
    counts = {f"parameters_{n}_m": count / 1e6 for n, count in (frozen | counts).items()}
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad) / 1e6
    for name, count in counts.items():
        log.info("%s: %.2f", name, count)
    # weights, gradients, two moments and the average, in fp32
    log.info("trained: %.2f M parameters, %.2f GB with gradients, AdamW and average", trained, trained * 20 / 1e3)
    return counts | {"parameters_trained_m": trained}


def pulls(task: HarivoTask, samples: list[int]) -> dict[str, float]:
    """Value of each term and the length of its gradient, weighted, on each part: what the weights of the losses do.

    The queue of L_DC is filled with other samples first.
    """
    if task.queue is not None:
        for i in range(1, 3):
            with torch.no_grad():
                task.terms([k + i * len(samples) for k in samples])
            task.stepped(True)
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


def pull(task: ArtvTask | DreamVideoTask, samples: list[int]) -> dict[str, float]:
    """Value of the one loss, the length of its gradient on each part, and seconds of forward and backward."""
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


def gradients(task: Examined, loss: Tensor) -> dict[str, float]:
    """Length of the gradient on each trained part."""
    parts = trained_parts(task)
    named = [(part, p) for part, module in parts.items() for p in module.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    squares = dict.fromkeys(parts, 0.0)
    for (part, _), grad in zip(named, grads, strict=True):
        squares[part] += 0.0 if grad is None else float(grad.float().square().sum())
    return {part: square**0.5 for part, square in squares.items()}


def costs(task: HarivoTask, samples: list[int]) -> dict[str, float]:
    """Seconds of forward and backward of L_DSM alone, and what each other term adds."""
    given, figures = task.weights, {}

    def step() -> None:
        task(samples)["loss"].backward()
        task.zero_grad(set_to_none=True)
        task.stepped(False)

    for name in ("dsm", *(n for n in given if n != "dsm" and given[n])):
        task.weights = {n: w if n in ("dsm", name) else 0.0 for n, w in given.items()}
        figures[f"seconds_{name}"] = _seconds(step)
    task.weights = given
    for name in list(figures)[1:]:
        figures[name] -= figures["seconds_dsm"]
    shown = ", ".join(f"{name.removeprefix('seconds_')} {value:.2f}" for name, value in figures.items())
    log.info("seconds of forward and backward for %d clips, the other terms on top of dsm: %s", len(samples), shown)
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
