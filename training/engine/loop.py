"""The training loop. A task computes the loss of given sample numbers; the loop does everything else.

In every task, sample `k` is a pure function of (seed, k). Step `s` uses the samples s*B .. s*B+B-1, and the state
(weights, optimizer, average, counters, the task's extras) is saved atomically (`state`). A run that was stopped and
resumed with the same number of processes is therefore bit for bit equal to an uninterrupted one; with another number of
processes only the order of sums differs. Processes use DistributedDataParallel over gloo (CPU) or nccl (GPU).
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
from torch import Tensor

from ..plans.errors import InputError
from ..plans.run import TrainTable
from . import state
from .lock import alone
from .logs import Logs
from .task import Task

log = logging.getLogger(__name__)

# settings that older states do not contain, and the values they had
ADDED = {"train.beta2": "0.99", "data.world": "sprites", "vae.crop": "32", "vae.anywhere": "0.0"}
RENAMED = {"train.decay": "train.lr_decay_share", "train.clip": "train.grad_clip"}  # names in older states
FREE = {"out", "steps", "micro", "save_every", "log_every", "keep", "bad_steps"}  # may change when a run resumes
Average = dict[str, Tensor]


class NonFiniteLoss(InputError):
    """The gradient was not finite for more than `bad_steps` steps in a row."""


class ChangedRun(InputError):
    """A run would resume with other data, another base or other settings than it started with."""


def learning_rate(run: TrainTable, step: int) -> float:
    """Linear warm-up, constant, then linear to lr_end over the last `lr_decay_share` of the steps."""
    remaining = (run.steps - step) / max(1.0, run.lr_decay_share * run.steps)
    warmup = (step + 1) / max(1, run.warmup)
    return min(run.lr_end + (run.lr - run.lr_end) * min(1.0, remaining), run.lr * warmup)


def sample_generator(seed: int, k: int, purpose: int = 0) -> torch.Generator:
    """The generator for noise, timesteps and dropout of sample `k`; the same in every process."""
    return torch.Generator().manual_seed((seed * 1_000_003 + k) * 31 + purpose)


def gather_samples(values: Tensor) -> Tensor:
    """The values of all processes, in the order of the samples: (n, ...) -> (n * processes, ...)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)  # sample s * world + r is value s of process r


def first_process() -> bool:
    """Whether this is the process that writes files: the only process of a run, or rank 0."""
    return int(os.environ.get("RANK", 0)) == 0


def fit(
    task: Task,
    run: TrainTable,
    *,
    allow: Collection[str] = (),
    on_save: Callable[[Average], None] | None = None,
    on_step: Callable[[int, Average], None] | None = None,
) -> Average:
    """Train `task`, resuming from a state in `run.out` if there is one; returns the averaged weights by name.

    Raises ChangedRun when that state was written with another model, data, base or setting; `allow` names settings that
    may differ. StateError when all of its states are damaged, BusyRun when another process trains in that folder.
    `on_step` and `on_save` are called by the first process.
    """
    with alone(run.out) if first_process() else contextlib.nullcontext():
        return Loop(task, run, allow).train(on_save, on_step)


class Loop:
    """One process's share of a run."""

    def __init__(self, task: Task, run: TrainTable, allow: Collection[str] = ()) -> None:
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
        trainable = {name: p for name, p in task.named_parameters() if p.requires_grad}
        self.names, self.params = list(trainable), list(trainable.values())
        options = {"weight_decay": run.weight_decay, "betas": (0.9, run.beta2)}
        self.optimizer = torch.optim.AdamW(self.params, lr=run.lr, fused=True, **options)
        self.model = self.accelerator.prepare_model(task)
        # with ema = 0 the average is the weights themselves and needs no additional memory
        self.average = [p.detach().clone() if run.ema else p.detach() for p in self.params]
        # number of steps in total, averaged steps, skipped steps, skipped steps in a row
        self.counts = torch.zeros(4, dtype=torch.long)
        self.identity = self._identity()
        self.saved_step = self._resume(allow)

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
        with _stop_signals() as signals:
            stop = False
            while self.step < run.steps and not stop:
                stop = self.advance(figures, bool(signals))
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
            raise SystemExit(f"stopped at step {self.step}; run the same command again to resume")
        return self.averages()

    def averages(self) -> Average:
        return dict(zip(self.names, self.average, strict=True))

    def advance(self, figures: dict[str, list[float]] | None = None, stop_request: bool = False) -> bool:
        """Make one step; returns whether any process was asked to stop."""
        figures = {} if figures is None else figures
        first, run = self.step * self.run.batch, self.run
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(run, self.step)
        samples = list(range(first + self.rank, first + run.batch, self.world))
        size = run.micro or len(samples)
        parts = [samples[i : i + size] for i in range(0, len(samples), size)]
        for part in parts:
            synchronise = part is parts[-1]
            with contextlib.nullcontext() if synchronise else self.accelerator.no_sync(self.model):
                losses = self.model(part)
                self.accelerator.backward(losses["loss"] * (len(part) / len(samples)))
            for name, value in losses.items():
                figures.setdefault(name, []).append(float(value.detach()))
        norm = self.accelerator.clip_grad_norm_(self.params, run.grad_clip)
        bad, stop = self._agree(norm is None or not bool(torch.isfinite(norm)), stop_request)
        if bad:
            self._skip_step()
        else:
            self._take_step()
        self.task.after_step(not bad)
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

    def _skip_step(self) -> None:
        self.counts += torch.tensor([1, 0, 1, 1])
        step, row = self.step - 1, int(self.counts[3])
        if row > self.run.bad_steps:
            raise NonFiniteLoss(
                f"step {step}: the gradient is not finite, {row} times in a row; the last state in {self.run.out} is "
                "intact. Lower the learning rate, or check the data of these steps"
            )
        log.warning("step %d: the gradient is not finite; the step is skipped (%d in a row)", step, row)

    def _agree(self, *flags: bool) -> list[bool]:
        """Whether each flag is set on any process, so that all processes skip, or stop, at the same step."""
        if self.world == 1:
            return list(flags)
        values = torch.tensor([float(f) for f in flags], device=self.accelerator.device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [bool(f) for f in values]

    def _report(self, logs: Logs | None, figures: dict[str, list[float]]) -> None:
        shares = [figures]
        if self.world > 1:
            shares = [{} for _ in range(self.world)]
            dist.all_gather_object(shares, figures)
        names = dict.fromkeys(name for share in shares for name in share)
        values = {name: [v for share in shares for v in share.get(name, [])] for name in names}
        means = {name: sum(v) / len(v) for name, v in values.items()}
        skipped = {"skipped_steps": float(self.counts[2])} if self.counts[2] else {}
        if logs:
            logs.write(self.step, {"lr": learning_rate(self.run, self.step - 1), **means, **skipped})
        figures.clear()

    def save(self) -> None:
        """Write the state, unless it has been written for this step already."""
        if self.saved_step == self.step:
            return
        run = self.run
        record = {"identity": self.identity, "run": {k: str(v) for k, v in asdict(run).items()}}
        versions = {"torch": torch.__version__, "processes": str(self.world)}
        state.save(run.out / "state", self.step, self._tensors(), record | {"versions": versions}, keep=run.keep)
        self.saved_step = self.step

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
        """Load the newest state and return its step; -1 when there is none."""
        self.run.out.mkdir(parents=True, exist_ok=True)
        newest = state.newest(self.run.out / "state")
        if newest is None:
            return -1
        check_identity(state.record(newest).get("identity", {}), self.identity, newest, allow)
        entries = state.names(newest)
        for name, param in zip(self.names, self.params, strict=True):
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"optimizer/{name}/{key}" in entries:
                    shape = torch.zeros((), device=param.device) if key == "step" else torch.zeros_like(param)
                    self.optimizer.state[param][key] = shape
        state.load(newest, self._tensors())
        log.info("resuming %s at step %d", self.run.out, self.step)
        return self.step

    def _identity(self) -> dict[str, str]:
        run = {f"train.{k}": str(v) for k, v in asdict(self.run).items() if k not in FREE}
        text = "".join(f"{n}{tuple(p.shape)}" for n, p in zip(self.names, self.params, strict=True))
        return run | self.task.identity() | {"model": hashlib.sha256(text.encode()).hexdigest()[:16]}


def check_identity(
    old: Mapping[str, str], new: Mapping[str, str], state_folder: Path, allow: Collection[str] = ()
) -> None:
    """Raise ChangedRun, naming every entry that differs and is not in `allow`."""
    old = {RENAMED.get(name, name): value for name, value in old.items()}
    old = {name: value for name, value in ADDED.items() if name in new} | old
    differences = [n for n in dict.fromkeys([*old, *new]) if old.get(n) != new.get(n)]
    errors = [n for n in differences if n not in allow or n == "model"]
    if not errors:
        return
    text = "; ".join(f"{n} was {old.get(n, 'absent')}, is now {new.get(n, 'absent')}" for n in errors)
    model = " It is the state of another model." if "model" in errors else ""
    raise ChangedRun(
        f"{state_folder} was written by another run: {text}.{model} Use another output folder, or restore the earlier "
        "values; --allow NAME resumes with a changed setting"
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects the stop signals that arrive: SIGTERM, SIGUSR1, which Slurm can send before its time limit, and Ctrl-C,
    which ends the process at once the second time."""
    signals: list[int] = []

    def collect(number: int, _frame: object) -> None:
        if number == signal.SIGINT and number in signals:
            raise KeyboardInterrupt
        signals.append(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
    handlers = {number: signal.signal(number, collect) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
