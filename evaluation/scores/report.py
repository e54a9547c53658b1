"""Reports of results: a Markdown table, and a line on how the results were obtained."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from .statistics import Interval

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = {
    "pocket_fvd": "pocket FVD",
    "flicker": "flicker",
    "difference": "difference",
    "colour": "colour",
    "shape": "shape",
    "background": "background",
    "direction": "direction",
    "constancy": "consistency",
}


def markdown(rows: Mapping[str, Mapping[str, Interval]], columns: Mapping[str, str] = COLUMNS) -> str:
    """A table with a line per row and a column per score: value [low, high]; missing scores are empty."""
    lines = [["", *columns.values()], ["---"] * (len(columns) + 1)]
    lines += [[name, *(str(row[c]) if c in row else "" for c in columns)] for name, row in rows.items()]
    return "\n".join("|".join(["", *(f" {cell} " if cell else " " for cell in line), ""]) for line in lines)


def figures(scores: Mapping[str, Interval]) -> dict[str, list[float]]:
    """Value, low and high of each score, for a JSON file."""
    return {name: [round(v, 5) for v in (i.value, i.low, i.high)] for name, i in scores.items()}


def origin(command: Sequence[str], **settings: object) -> str:
    """Date, machine, command, commit and settings in one sentence."""
    text = "".join(f"; {name} {value}" for name, value in settings.items())
    return f"{datetime.now(UTC):%Y-%m-%d}, {machine()}: `{' '.join(command)}`; commit {commit()}{text}."


def machine() -> str:
    """Cores and processor of this machine, and its GPU."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores of {_processor()}, {gpu}"


def _processor() -> str:
    """The name of the processor; Python only knows its architecture."""
    try:
        name = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        name = None
    return name[1] if name else platform.processor() or platform.machine()


def commit() -> str:
    """The current commit, with "+" if the working tree has changes."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return head.stdout.strip() + ("+" if status.strip() else "")
