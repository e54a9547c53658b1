"""Does every reader end in a value or in a sentence? Files, folders and graphs are damaged at random and read.

Keys: `cases`; `named`: ended in the reader's own error; `equal`: the value that the input states; `wrong`: another
value; `raw`: Python's, torch's or FFmpeg's own error; `hang`: more than 10 s, or more memory than the size of the input
and 96 MiB; `code_run`: code in the input ran. The command fails unless the last four are 0.
"""

import argparse
import logging
import sys
import time
import warnings
from importlib import import_module

from ..common.report import finish
from .harness import OUTCOMES, Kind, run, totals

KINDS = ("weights", "videos", "configs", "caches", "jobs", "states", "graphs")
BAD = ("wrong", "raw", "hang", "code_run")


def kind_of(name: str) -> Kind:
    return import_module(f".{name}", __package__).KIND


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, action="append", help="what is damaged (default: every kind)")
    parser.add_argument("--cases", type=int, default=5000, help="number of cases, of all kinds together")
    parser.add_argument("--seed", type=int, help="seed of the damage (default: the number of this day)")
    parser.add_argument("--case", type=int, help="only the case of this number, and how it ends")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    seed = int(time.time() // 86400) if args.seed is None else args.seed
    kinds, results = args.kind or list(KINDS), []
    for i, name in enumerate(kinds):
        numbers = range(len(range(i, args.cases, len(kinds))))
        for result in run(kind_of(name), numbers if args.case is None else range(args.case, args.case + 1), seed):
            results.append(result)
            if result.outcome in BAD or args.case is not None:
                print(f"{name} {result.number}, {result.label}: {result.outcome}: {result.text}", flush=True)
        part = totals(results)
        print(f"after {name}: {part['cases']} cases, {', '.join(f'{part[o]} {o}' for o in OUTCOMES)}", flush=True)
    figures = totals(results)
    finish("fuzz", {"kinds": kinds, "seed": seed, **figures})
    sys.exit(any(figures[name] for name in BAD))


if __name__ == "__main__":
    main()
