"""The training loop: a task gives a loss for sample numbers, the loop does the rest.

Sample `k` is a pure function of (seed, k) in every task, step `s` takes samples s*B .. s*B+B-1, and the whole state
(weights, optimizer, EMA, step) is written atomically; so a run that was stopped and resumed at the same world size is
bit for bit the run that was not. Several processes are joined by DistributedDataParallel over gloo (CPU) or nccl (GPU).
"""

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """How to train. `batch` is the global batch: results do not depend on how many processes share it."""

    out: Path
    steps: int
    batch: int
    lr: float = 1e-3
    seed: int = 0
    warmup: int = 100
    decay: float = 0.4  # last share of the run in which the learning rate falls linearly to zero
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    save_every: int = 200
    log_every: int = 20


class Task(nn.Module):
    """What is trained. `forward(samples)` returns {"loss": scalar, other figures...}; frozen parts need no gradient."""

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        raise NotImplementedError


class NonFiniteLoss(RuntimeError):
    pass


def learning_rate(run: Run, step: int) -> float:
    """Linear warm-up, constant, then linear to zero over the last `decay` of the steps."""
    left = (run.steps - step) / max(1.0, run.decay * run.steps)
    return run.lr * min(1.0, (step + 1) / max(1, run.warmup), left)


def sample_generator(seed: int, k: int, purpose: int = 0) -> torch.Generator:
    """Noise, timesteps and drops of sample `k` come from here, whoever computes it."""
    return torch.Generator().manual_seed((seed * 1_000_003 + k) * 31 + purpose)


def fit(task: Task, run: Run, *, on_save: Callable[[dict[str, Tensor]], None] | None = None) -> dict[str, Tensor]:
    """Train `task`, resuming from `run.out` when there is something to resume; returns the EMA weights by name."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    task.to(accelerator.device)
    names = [n for n, p in task.named_parameters() if p.requires_grad]
    params = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=run.lr, weight_decay=run.weight_decay, betas=(0.9, 0.99), fused=True)
    step, ema = _resume(run, optimizer, names, params)
    model = accelerator.prepare_model(task)
    rank, world = accelerator.process_index, accelerator.num_processes
    if run.batch % world:
        raise ValueError(f"batch {run.batch} does not divide among {world} processes; choose a multiple of {world}")
    stop, begun, first = _catch_sigterm(), time.monotonic(), step
    figures: dict[str, list[float]] = {}
    while step < run.steps and not stop:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run, step)
        out = model(list(range(step * run.batch + rank, (step + 1) * run.batch, world)))
        accelerator.backward(out["loss"])
        norm = accelerator.clip_grad_norm_(params, run.clip)
        if norm is None or not torch.isfinite(norm):
            raise NonFiniteLoss(f"step {step}: gradient norm is {norm}; the last state in {run.out} is intact")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        _average(ema, params, min(run.ema, step / (step + 10)))
        for name, value in out.items():
            figures.setdefault(name, []).append(float(value.detach()))
        if rank == 0 and step % run.log_every == 0:
            _report(run, step, figures, (time.monotonic() - begun) / (step - first))
            figures.clear()
        if rank == 0 and (step % run.save_every == 0 or step == run.steps):
            _save(run, step, task, optimizer, ema, names)
            if on_save:
                on_save(dict(zip(names, ema, strict=True)))
    if stop and rank == 0:
        _save(run, step, task, optimizer, ema, names)
    accelerator.wait_for_everyone()
    if stop:
        raise SystemExit(f"stopped at step {step}; the same command goes on from here")
    return dict(zip(names, ema, strict=True))


def _average(ema: list[Tensor], params: list[nn.Parameter], decay: float) -> None:
    for mean, param in zip(ema, params, strict=True):
        mean.lerp_(param.detach(), 1 - decay)


def _catch_sigterm() -> list[int]:
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    return stop


def _report(run: Run, step: int, figures: dict[str, list[float]], pace: float) -> None:
    means = {name: sum(v) / len(v) for name, v in figures.items()}
    line = {"step": step, "lr": learning_rate(run, step), "seconds_per_step": round(pace, 4), **means}
    with (run.out / "log.jsonl").open("a") as f:
        f.write(json.dumps(line) + "\n")
    shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
    log.info("step %d/%d  %s  %.2f s/step  ETA %.1f min", step, run.steps, shown, pace, (run.steps - step) * pace / 60)


def _save(run: Run, step: int, task: nn.Module, optimizer, ema: list[Tensor], names: list[str]) -> None:
    weights = {n: p.detach() for n, p in task.named_parameters() if n in set(names)}
    plan = {name: str(value) for name, value in asdict(run).items()}
    state = {"step": step, "weights": weights, "ema": ema, "optimizer": optimizer.state_dict(), "run": plan}
    target = run.out / "state.pt"
    partial = target.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, target)


def _resume(run: Run, optimizer, names: list[str], params: list[nn.Parameter]) -> tuple[int, list[Tensor]]:
    run.out.mkdir(parents=True, exist_ok=True)
    path = run.out / "state.pt"
    if not path.exists():
        return 0, [p.detach().clone() for p in params]
    state = torch.load(path, map_location=params[0].device, weights_only=True)
    for key in ("seed", "batch"):
        if state["run"][key] != str(getattr(run, key)):
            raise ValueError(
                f"{path} was written with {key}={state['run'][key]}, this run asks for {getattr(run, key)}: the samples"
                " would no longer be the same ones. Use another output folder, or the old value"
            )
    if list(state["weights"]) != names:
        raise ValueError(f"{path} holds the state of another model; use another output folder")
    with torch.no_grad():
        for name, param in zip(names, params, strict=True):
            param.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    log.info("resumed %s at step %d", run.out, state["step"])
    return state["step"], state["ema"]
