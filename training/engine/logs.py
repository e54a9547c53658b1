"""The logs of a training run: log.jsonl, TensorBoard files (where it is installed), and progress lines with ETA."""

import json
import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)


def configure() -> None:
    """Log to stderr. The first process of a training logs everything, the others only warnings and errors."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s")


class Logs:
    """The logs of one run. When it resumes, entries after the step at which it resumes are deleted."""

    def __init__(self, folder: Path, step: int, steps: int) -> None:
        self.path, self.first_step, self.steps, self.start_time = folder / "log.jsonl", step, steps, time.monotonic()
        if self.path.exists():
            lines = [
                line
                for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines(True)
                if _step_of(line) <= step
            ]
            self.path.write_text("".join(lines), encoding="utf-8")
        self.board = _tensorboard(folder / "tensorboard", step)

    def write(self, step: int, figures: dict[str, float]) -> None:
        pace = (time.monotonic() - self.start_time) / max(1, step - self.first_step)
        line = {"step": step, "seconds_per_step": round(pace, 4), **figures}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        minutes = int((self.steps - step) * pace / 60)
        log.info("step %d/%d  %s  %.2f s/step  ETA %dh%02d", step, self.steps, text, pace, minutes // 60, minutes % 60)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _step_of(line: str) -> float:
    """The step of a log line; infinite for an incomplete line, which a killed run can leave behind."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


def _tensorboard(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("TensorBoard is not installed: figures are written to log.jsonl only")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
