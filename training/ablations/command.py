"""The verb `ablate`: its command-line options, and how they are passed to one ablation."""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..plans.errors import ConfigError

OPTIONAL = ("latents", "rows", "seeds", "steps", "set", "model", "decoder", "length", "images", "motion")
"""Options that only some ablations support; the `OPTIONS` of an ablation names those that it supports."""


def add_options(ablate: argparse.ArgumentParser, systems: tuple[str, ...]) -> None:
    ablate.add_argument("system", choices=systems, help="what is ablated; pseudo: VidRD's pseudo-videos")
    ablate.add_argument("--quick", action="store_true", help="a small version: about 15 minutes on two cores")
    ablate.add_argument("--split", choices=("test", "validation"), default="test", help="which held-out prompts to use")
    ablate.add_argument("--prompts", type=int, help="number of prompts that are scored")
    ablate.add_argument("--sampling", type=int, help="number of DDIM steps")
    ablate.add_argument("--latents", type=Path, help="harivo: folder of latents (default: drawn clips are encoded)")
    ablate.add_argument("--rows", help="harivo: names of rows, dreamvideo: of tables; comma-separated (default: all)")
    ablate.add_argument("--seeds", type=int, help="harivo: trainings of each row, with seeds from 0 on (default: 1)")
    ablate.add_argument("--steps", type=int, help="harivo, pseudo: steps of each training")
    ablate.add_argument("--images", type=int, help="pseudo: number of images")
    ablate.add_argument(
        "--model",
        type=Path,
        help="vidrd: the motion, HARIVO or VidRD file to sample with; artv, dreamvideo: the file of that system; "
        "pseudo: the VidRD file from which the trainings start",
    )
    ablate.add_argument("--motion", type=Path, help="dreamvideo: the motion file for a file that holds only the branch")
    ablate.add_argument("--decoder", type=Path, help="vidrd: the temporal decoder file to test (default: bundled)")
    ablate.add_argument("--length", type=int, help="vidrd: clips per video; artv: frames; dreamvideo: stages")


def run(args: argparse.Namespace, ablation: Any, tokenizer: Path) -> None:
    """Run an ablation. Raises ConfigError for an option that it does not support."""
    for name in OPTIONAL:
        if getattr(args, name) and name not in ablation.OPTIONS:
            raise ConfigError(f"--{name} is not an option of `ablate {args.system}`; omit it")
    options = ablation.Options(
        out=args.out,
        tokenizer=tokenizer,
        budget=_budget(ablation.QUICK if args.quick else ablation.Budget(), args),
        split=args.split,
        processes=args.processes,
    )
    ablation.ablate(replace(options, **_optional(args, ablation)))


def _optional(args: argparse.Namespace, ablation: Any) -> dict[str, Any]:
    """The values of `OPTIONAL` that the command sets, by their names in the ablation's `Options`."""
    values: dict[str, Any] = {name: getattr(args, name) for name in ("latents", "model", "decoder", "motion")}
    values["changes"] = tuple(args.set)
    values["rows"] = ablation.select_rows(args.rows) if args.rows else None
    values["seeds"] = tuple(range(args.seeds)) if args.seeds else None
    return {name: value for name, value in values.items() if value}


def _budget(budget: Any, args: argparse.Namespace) -> Any:
    """The budget with the values that the command sets."""
    values = {field.name: getattr(args, field.name, None) for field in fields(budget)}
    return replace(budget, **{name: value for name, value in values.items() if value})
