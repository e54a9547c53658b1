"""The one line that ends every benchmark."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """The commit that was measured; "+" when the working tree had changes."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return head.stdout.strip() + ("+" if changed.strip() else "")


def finish(name: str, figures: dict) -> None:
    """Print the figures as one JSON object, last on stdout. Fractions, not percent; times in seconds."""
    command = " ".join(["scripts/dev.py bench", name, *sys.argv[1:]])
    print(json.dumps({"bench": name, **figures, "commit": commit(), "command": f"python3 {command}"}))
