"""Proves the pack on a GPU, offline, in minutes: correctness in half precision, speed, memory, and steps of training.

Without a GPU, `--cpu --tiny` runs every part with small networks on the processor, which tries the command itself. Each
part writes `results.json` and `table.md` into the folder --out when it has ended, so that a crash or a time limit loses
only the part that was running. The last line is JSON; the exit status is 1 if a part failed. Parts that cannot run here
are skipped, with the reason and the figure. docs/gpu.md says how to run it on a machine without this project's
environment and without a network.
"""

import argparse
import os
import sys
from pathlib import Path

from .gpu import machine
from .gpu.runner import PARTS, run, select


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cpu", action="store_true", help="run on the processor")
    options.add_argument("--tiny", action="store_true", help="small networks and few rounds")
    options.add_argument("--parts", nargs="+", metavar="PART", help=f"a selection of: {', '.join(PARTS)}")
    options.add_argument("--budget", type=float, default=480, help="seconds after which no further part is started")
    options.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of results.json and table.md")
    options.add_argument("--evolved", type=Path, metavar="FOLDER", help="a copy of ComfyUI-AnimateDiff-Evolved")
    return options


def main() -> int:
    options = parser().parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products; read when CUDA starts
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not options.cpu and not machine.has_cuda():
        print(
            "bench gpu: torch finds no CUDA device here; `--cpu --tiny` runs every part with small networks on the "
            "processor, which tries the command itself and measures nothing about a GPU.",
            file=sys.stderr,
        )
        return 1
    if missing := machine.missing_packages():
        print(f"bench gpu: these packages are missing: {', '.join(missing)}; see docs/gpu.md", file=sys.stderr)
        return 1
    try:
        parts = select(options.parts)
    except ValueError as error:
        print(f"bench gpu: {error}", file=sys.stderr)
        return 1
    return run(parts, machine.Setup(cpu=options.cpu, tiny=options.tiny, evolved=options.evolved), options)


if __name__ == "__main__":
    sys.exit(main())
