"""The JSON line that every benchmark prints last."""

import json
import sys

from ...evaluation.scores.report import ROOT, commit

__all__ = ["ROOT", "finish"]


def finish(name: str, figures: dict) -> None:
    """Print the figures as one JSON object, as the last line on stdout. Shares are fractions; times are in seconds."""
    command = " ".join(["scripts/dev.py bench", name, *sys.argv[1:]])
    print(json.dumps({"bench": name, **figures, "commit": commit(), "command": f"python3 {command}"}))
