"""The one line that ends every benchmark."""

import json
import sys

from ...evaluation.scores.report import ROOT, commit

__all__ = ["ROOT", "finish"]


def finish(name: str, figures: dict) -> None:
    """Print the figures as one JSON object, last on stdout. Fractions, not percent; times in seconds."""
    command = " ".join(["scripts/dev.py bench", name, *sys.argv[1:]])
    print(json.dumps({"bench": name, **figures, "commit": commit(), "command": f"python3 {command}"}))
