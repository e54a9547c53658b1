"""What a run tells while it runs: log.jsonl (always), TensorBoard's files (where it is installed), a line with ETA."""

import json
import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)


def begin() -> None:
    """Messages go to stderr: those of the first process of a training, and of every process that draws clips."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s")


class Logs:
    """The logs of one run. A resumed run forgets what was logged after the step it goes on from."""

    def __init__(self, folder: Path, step: int, steps: int) -> None:
        self.path, self.first, self.steps, self.begun = folder / "log.jsonl", step, steps, time.monotonic()
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines(True) if _step_of(line) <= step]
            self.path.write_text("".join(kept))
        self.board = _tensorboard(folder / "tensorboard", step)

    def write(self, step: int, figures: dict[str, float]) -> None:
        pace = (time.monotonic() - self.begun) / max(1, step - self.first)
        line = {"step": step, "seconds_per_step": round(pace, 4), **figures}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        left = int((self.steps - step) * pace / 60)
        log.info("step %d/%d  %s  %.2f s/step  ETA %dh%02d", step, self.steps, shown, pace, left // 60, left % 60)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _step_of(line: str) -> float:
    """Infinite for the half line of a run that was killed while writing it."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")


def _tensorboard(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("TensorBoard is not installed: figures go to log.jsonl only")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
