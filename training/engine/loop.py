"""The training loop: a task gives a loss for sample numbers, the loop does the rest.

Sample `k` is a pure function of (seed, k) in every task, step `s` takes samples s*B .. s*B+B-1, and the whole state
(weights, optimizer, average, counters, what the task adds) is written whole or not at all (`state`). So a run that was
stopped and resumed with as many processes is bit for bit the run that was not; with another number of processes it
differs by the order of sums only. Processes are joined by DistributedDataParallel over gloo (CPU) or nccl (GPU).
"""

import contextlib
import hashlib
import logging
import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from ..plans.run import Run
from . import state
from .logs import Logs

log = logging.getLogger(__name__)

ADDED = {"train.beta2": "0.99"}  # settings which older states do not name, and what they were
FREE = {"out", "steps", "micro", "save_every", "log_every", "keep", "bad_steps"}  # may change under a resumed run
Average = dict[str, Tensor]


class Task(nn.Module):
    """What is trained. `forward(samples)` returns {"loss": scalar, other figures...}; frozen parts need no gradient.

    The loss is a mean over the samples, so that it does not depend on how they are shared out.
    """

    def forward(self, samples: list[int]) -> dict[str, Tensor]:
        raise NotImplementedError

    def identity(self) -> dict[str, str]:
        """What the run is made of (hashes of data and base, settings): a resumed run must find it unchanged."""
        return {}

    def extras(self) -> dict[str, Tensor]:
        """State besides the trained weights, the same on every process. A resume writes into these tensors."""
        return {}

    def stepped(self, counted: bool) -> None:
        """Called by every process after each step: the place to change `extras`. `counted`: it was not passed over."""


class NonFiniteLoss(RuntimeError):
    pass


class ChangedRun(ValueError):
    """A run would go on with other data, another base or other settings than it began with."""


def learning_rate(run: Run, step: int) -> float:
    """Linear warm-up, constant, then linear to lr_end over the last `decay` of the steps."""
    left = (run.steps - step) / max(1.0, run.decay * run.steps)
    warm = (step + 1) / max(1, run.warmup)
    return min(run.lr_end + (run.lr - run.lr_end) * min(1.0, left), run.lr * warm)


def sample_generator(seed: int, k: int, purpose: int = 0) -> torch.Generator:
    """Noise, timesteps and drops of sample `k` come from here, whoever computes it."""
    return torch.Generator().manual_seed((seed * 1_000_003 + k) * 31 + purpose)


def gathered(values: Tensor) -> Tensor:
    """What all processes computed for their samples, in the order of the samples. (n, ...) -> (n * processes, ...)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)  # sample s * world + r is number s of process r


def first_process() -> bool:
    """Whether this is the only process of a run, or the one of them that writes."""
    return int(os.environ.get("RANK", 0)) == 0


def fit(
    task: Task,
    run: Run,
    *,
    allow: Collection[str] = (),
    on_save: Callable[[Average], None] | None = None,
    on_step: Callable[[int, Average], None] | None = None,
) -> Average:
    """Train `task`, resuming from `run.out` when there is something to resume; returns the average weights by name.

    ChangedRun when the state there was written by another model, data, base or setting; `allow` names the settings
    that may differ. `on_step` and `on_save` are called by the first process.
    """
    return Loop(task, run, allow).train(on_save, on_step)


class Loop:
    """One process's share of a run."""

    def __init__(self, task: Task, run: Run, allow: Collection[str] = ()) -> None:
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
        precision = None if run.precision == "no" else run.precision
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision=precision, kwargs_handlers=[ddp]
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if run.batch % self.world:
            raise ValueError(
                f"batch {run.batch} does not divide among {self.world} processes; choose a multiple of {self.world}"
            )
        self.task, self.run = task.to(self.accelerator.device), run
        named = {name: p for name, p in task.named_parameters() if p.requires_grad}
        self.names, self.params = list(named), list(named.values())
        decay = {"weight_decay": run.weight_decay, "betas": (0.9, run.beta2)}
        self.optimizer = torch.optim.AdamW(self.params, lr=run.lr, fused=True, **decay)
        self.model = self.accelerator.prepare_model(task)
        # ema = 0: the average is the weights, and takes no memory of its own
        self.average = [p.detach().clone() if run.ema else p.detach() for p in self.params]
        # steps, of which averaged, passed over, passed over just now
        self.counts = torch.zeros(4, dtype=torch.long)
        self.identity = self._identity()
        self.saved = self._resume(allow)

    @property
    def step(self) -> int:
        return int(self.counts[0])

    def train(
        self,
        on_save: Callable[[Average], None] | None = None,
        on_step: Callable[[int, Average], None] | None = None,
    ) -> Average:
        run = self.run
        logs = Logs(run.out, self.step, run.steps) if self.rank == 0 else None
        figures: dict[str, list[float]] = {}
        with _stop_signals() as asked:
            stop = False
            while self.step < run.steps and not stop:
                stop = self.advance(figures, bool(asked))
                if self.step % run.log_every == 0:
                    self._report(logs, figures)
                if on_step and self.rank == 0:
                    on_step(self.step, self.averages())
                if stop or self.step % run.save_every == 0 or self.step == run.steps:
                    self.save()
                    if on_save and self.rank == 0:
                        on_save(self.averages())
        if logs:
            logs.close()
        if self.step < run.steps:
            raise SystemExit(f"stopped at step {self.step}; the same command goes on from here")
        return self.averages()

    def averages(self) -> Average:
        return dict(zip(self.names, self.average, strict=True))

    def advance(self, figures: dict[str, list[float]] | None = None, asked: bool = False) -> bool:
        """One step; whether some process was asked to stop."""
        figures = {} if figures is None else figures
        first, run = self.step * self.run.batch, self.run
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(run, self.step)
        samples = list(range(first + self.rank, first + run.batch, self.world))
        size = run.micro or len(samples)
        parts = [samples[i : i + size] for i in range(0, len(samples), size)]
        for part in parts:
            joined = part is parts[-1]
            with contextlib.nullcontext() if joined else self.accelerator.no_sync(self.model):
                out = self.model(part)
                self.accelerator.backward(out["loss"] * (len(part) / len(samples)))
            for name, value in out.items():
                figures.setdefault(name, []).append(float(value.detach()))
        norm = self.accelerator.clip_grad_norm_(self.params, run.clip)
        bad, stop = self._agree(norm is None or not bool(torch.isfinite(norm)), asked)
        if bad:
            self._pass_over()
        else:
            self._take_step()
        self.task.stepped(not bad)
        self.optimizer.zero_grad(set_to_none=True)
        return stop

    def _take_step(self) -> None:
        self.optimizer.step()
        self.counts += torch.tensor([1, 1, 0, 0])
        self.counts[3] = 0
        n = int(self.counts[1])
        decay = min(self.run.ema, n / (n + 10))
        for mean, param in zip(self.average, self.params, strict=True):
            mean.lerp_(param.detach(), 1 - decay)

    def _pass_over(self) -> None:
        self.counts += torch.tensor([1, 0, 1, 1])
        step, row = self.step - 1, int(self.counts[3])
        if row > self.run.bad_steps:
            raise NonFiniteLoss(
                f"step {step}: the gradient is not finite, for the {row}. time in a row; the last state in "
                f"{self.run.out} is intact. Lower the learning rate, or look at the data of these steps"
            )
        log.warning("step %d: the gradient is not finite; the step is passed over (%d in a row)", step, row)

    def _agree(self, *flags: bool) -> list[bool]:
        """Whether each flag is up on any process: all of them skip, or stop, at the same step."""
        if self.world == 1:
            return list(flags)
        raised = torch.tensor([float(f) for f in flags], device=self.accelerator.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(f) for f in raised]

    def _report(self, logs: Logs | None, figures: dict[str, list[float]]) -> None:
        shares = [figures]
        if self.world > 1:
            shares = [{} for _ in range(self.world)]
            dist.all_gather_object(shares, figures)
        names = dict.fromkeys(name for share in shares for name in share)
        values = {name: [v for share in shares for v in share.get(name, [])] for name in names}
        means = {name: sum(v) / len(v) for name, v in values.items()}
        passed = {"passed_over": float(self.counts[2])} if self.counts[2] else {}
        if logs:
            logs.write(self.step, {"lr": learning_rate(self.run, self.step - 1), **means, **passed})
        figures.clear()

    def save(self) -> None:
        """Write the state, unless this step has one."""
        if self.saved == self.step:
            return
        run = self.run
        record = {"identity": self.identity, "run": {k: str(v) for k, v in asdict(run).items()}}
        versions = {"torch": torch.__version__, "processes": str(self.world)}
        state.save(run.out / "state", self.step, self._tensors(), record | {"versions": versions}, keep=run.keep)
        self.saved = self.step

    def _tensors(self) -> dict[str, Tensor]:
        weights = {f"weights/{n}": p.detach() for n, p in zip(self.names, self.params, strict=True)}
        average = {f"average/{n}": v for n, v in self.averages().items()}
        inner = {
            f"optimizer/{name}/{key}": value
            for name, param in zip(self.names, self.params, strict=True)
            for key, value in self.optimizer.state[param].items()
        }
        extras = {f"task/{n}": v for n, v in self.task.extras().items()}
        return {"counts": self.counts, **weights, **average, **inner, **extras}

    def _resume(self, allow: Collection[str]) -> int:
        """The step of the newest state, loaded; -1 when there is none."""
        self.run.out.mkdir(parents=True, exist_ok=True)
        whole = state.states(self.run.out / "state")
        if not whole:
            return -1
        newest = whole[-1]
        check_identity(state.record(newest)["identity"], self.identity, newest, allow)
        held = state.names(newest)
        for name, param in zip(self.names, self.params, strict=True):
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"optimizer/{name}/{key}" in held:
                    shape = torch.zeros((), device=param.device) if key == "step" else torch.zeros_like(param)
                    self.optimizer.state[param][key] = shape
        state.load(newest, self._tensors())
        log.info("resumed %s at step %d", self.run.out, self.step)
        return self.step

    def _identity(self) -> dict[str, str]:
        run = {f"train.{k}": str(v) for k, v in asdict(self.run).items() if k not in FREE}
        text = "".join(f"{n}{tuple(p.shape)}" for n, p in zip(self.names, self.params, strict=True))
        return run | self.task.identity() | {"model": hashlib.sha256(text.encode()).hexdigest()[:16]}


def check_identity(
    before: Mapping[str, str], now: Mapping[str, str], state_folder: Path, allow: Collection[str] = ()
) -> None:
    """ChangedRun naming every entry that differs and is not in `allow`."""
    before = ADDED | dict(before)
    changed = [n for n in dict.fromkeys([*before, *now]) if before.get(n) != now.get(n)]
    refused = [n for n in changed if n not in allow or n == "model"]
    if not refused:
        return
    told = "; ".join(f"{n} was {before.get(n, 'absent')}, is now {now.get(n, 'absent')}" for n in refused)
    model = " This is the state of another model." if "model" in refused else ""
    raise ChangedRun(
        f"{state_folder} was written by another run: {told}.{model} Use another output folder, or what it was before; "
        "--allow NAME goes on in spite of a changed setting"
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The stop signals that came (SIGTERM, and SIGUSR1 which Slurm can send before its limit)."""
    came: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
