"""The training of any registered system, from its task to the weight file."""

from collections.abc import Callable, Collection
from pathlib import Path

from ..engine.loop import Average, first_process, fit
from ..engine.task import SystemTask
from ..plans.run import TrainTable

Show = Callable[[int, Average], None]
Write = Callable[[SystemTask, Average, Path], None]


def learn(
    task: SystemTask,
    table: TrainTable,
    name: str,
    *,
    write: Write,
    show: Show | None = None,
    allow: Collection[str] = (),
) -> Path:
    """Train, check that the frozen weights did not change, and write RUN/name with the averaged weights.

    Raises RuntimeError when a single bit of the frozen weights changed; nothing is written then.
    """
    frozen = task.frozen_hash()
    average = fit(task, table, allow=allow, on_step=show)
    if task.frozen_hash() != frozen:
        raise RuntimeError("the frozen weights changed during training; nothing was exported")
    path = table.out / name
    if first_process():
        write(task, average, path)
    return path
