"""A small task with a queue that is equal on all processes, and runs of it, for tests that need several processes.

python -m torch.distributed.run --nproc_per_node=N worker.py ROOT whole cut resumed   (see `main`)
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
from torch import nn

from stillmotion.model_patches.harivo.losses import Queue, decoupled_contrastive
from stillmotion.training.data.order import row
from stillmotion.training.engine.loop import fit, gather_samples, sample_generator
from stillmotion.training.engine.task import Task
from stillmotion.training.plans.run import TrainTable

ROWS, BATCH, STEPS, CUT = 30, 8, 12, 5  # an epoch is not a whole number of batches; CUT is in the second


class Shared(Task):
    """Its loss depends on the queue, and therefore on the features of all processes in earlier steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 6)).double()
        self.queue = Queue(20, 6)
        self.table = torch.randn(ROWS, 2, 4, dtype=torch.float64)
        self.seen: list[int] = []
        self.pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, samples):
        self.seen += samples
        rows = torch.tensor([row(7, k, ROWS) for k in samples])
        noise = torch.stack([torch.randn(2, 4, generator=sample_generator(7, k)) for k in samples])
        z = self.net(self.table[rows] + 0.1 * noise)
        self.pending.append((z.detach().float(), rows))
        contrast = decoupled_contrastive(z[:, 0], z[:, 1], self.queue.negatives())
        return {"loss": (z.square().mean((1, 2)) + contrast).mean()}

    def extras(self):
        return {f"queue/{name}": value for name, value in self.queue.state_dict().items()}

    def after_step(self, applied):
        features, rows = (gather_samples(torch.cat(parts)) for parts in zip(*self.pending, strict=True))
        self.queue.push(features.flatten(0, 1), rows.repeat_interleave(2))
        self.pending.clear()


def plan(out: Path, **changes) -> TrainTable:
    values = {"steps": STEPS, "batch": BATCH, "lr": 1e-2, "warmup": 2, "save_every": 100, "log_every": 4}
    return TrainTable(out=out, **(values | changes))


def go(out: Path, stop_at: int | None = None) -> dict:
    """Run in `out` and write the results; `stop_at`: the step after which the first process receives SIGTERM."""
    task = Shared()

    def ask(step, _average):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        average = fit(task, plan(out), on_step=ask)
    except SystemExit:
        average = {}
    rank = os.environ.get("RANK", "0")
    result = {"seen": task.seen, "average": {n: v.tolist() for n, v in average.items()}}
    result["queue"] = task.queue.negatives().tolist()
    (out / f"result-{rank}.json").write_text(json.dumps(result))
    return result


class Heavy(Task):
    """4 MB of weights, so that a save takes long enough to be killed while it is writing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(1000, 1000))

    def forward(self, samples):
        return {"loss": self.weight.square().mean() * len(samples)}


def endless(out: Path) -> TrainTable:
    return TrainTable(out=out, steps=100_000, batch=1, save_every=1)


def fork(count: int, out: Path, port: int) -> None:
    """The run `out` with `count` processes: forks of this one, so that only this one imports torch."""
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(count):
        children.append(os.fork())
        if not children[-1]:
            os.environ.update(common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            code = 1
            try:
                go(out)
                code = 0
            except Exception:  # noqa: BLE001  a fork must not return to what the caller does next
                traceback.print_exc()
            finally:
                os._exit(code)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit(f"one of the {count} processes of {out.name} failed")


def main(root: Path, runs: list[str]) -> None:
    """Each name is a folder of `root`: "cut" is stopped, "endless" saves until it is killed, others run to the end.
    NAME:COUNT:PORT is run by so many forks."""
    torch.set_num_threads(1)
    for name in runs:
        if name == "endless":
            fit(Heavy(), endless(root / "endless"))
        elif ":" in name:
            folder, count, port = name.split(":")
            fork(int(count), root / folder, int(port))
        else:
            go(root / name, CUT if name == "cut" else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
