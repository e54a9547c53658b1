"""The verb `ablate`: its options, and how they become those of one ablation."""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..plans.errors import ConfigError

OPTIONAL = ("latents", "rows", "seeds", "steps", "set", "model", "decoder", "length", "images", "motion")
"""The options that not every ablation takes: an ablation's `OPTIONS` names those that it does."""


def add_options(ablate: argparse.ArgumentParser, systems: tuple[str, ...]) -> None:
    ablate.add_argument("system", choices=systems, help="what is ablated; pseudo: VidRD's pseudo-videos")
    ablate.add_argument("--quick", action="store_true", help="the same, small: some 15 minutes of two cores")
    ablate.add_argument("--split", choices=("test", "validation"), default="test", help="which held-out prompts")
    ablate.add_argument("--prompts", type=int, help="that are scored")
    ablate.add_argument("--sampling", type=int, help="DDIM steps")
    ablate.add_argument("--latents", type=Path, help="harivo: folder of latents (default: drawn clips are encoded)")
    ablate.add_argument("--rows", help="harivo: rows by name, dreamvideo: tables; with commas (default: all)")
    ablate.add_argument("--seeds", type=int, help="harivo: trainings of each row, seeds from 0 on (default: 1)")
    ablate.add_argument("--steps", type=int, help="harivo, pseudo: of each training")
    ablate.add_argument("--images", type=int, help="pseudo: images beside the clips")
    ablate.add_argument(
        "--model",
        type=Path,
        help="vidrd: the motion, HARIVO or VidRD file that draws; artv, dreamvideo: the file of that system; pseudo: "
        "the VidRD file that a training starts from",
    )
    ablate.add_argument("--motion", type=Path, help="dreamvideo: the motion file beside a file of the branch alone")
    ablate.add_argument("--decoder", type=Path, help="vidrd: a temporal decoder file to look at (default: bundled)")
    ablate.add_argument("--length", type=int, help="vidrd: clips of a video; artv: frames; dreamvideo: stages")


def run(args: argparse.Namespace, ablation: Any, tokenizer: Path) -> None:
    """Run an ablation. ConfigError for an option that it does not take."""
    for name in OPTIONAL:
        if getattr(args, name) and name not in ablation.OPTIONS:
            raise ConfigError(f"--{name} is not for `ablate {args.system}`; leave it out")
    options = ablation.Options(
        out=args.out,
        tokenizer=tokenizer,
        budget=_budget(ablation.QUICK if args.quick else ablation.Budget(), args),
        split=args.split,
        processes=args.processes,
    )
    ablation.ablate(replace(options, **_own_options(args, ablation)))


def _own_options(args: argparse.Namespace, ablation: Any) -> dict[str, Any]:
    """The options that not every ablation takes, as its Options name them."""
    own: dict[str, Any] = {name: getattr(args, name) for name in ("latents", "model", "decoder", "motion")}
    own["changes"] = tuple(args.set)
    own["rows"] = ablation.chosen(args.rows) if args.rows else None
    own["seeds"] = tuple(range(args.seeds)) if args.seeds else None
    return {name: value for name, value in own.items() if value}


def _budget(budget: Any, args: argparse.Namespace) -> Any:
    """The budget with what the command says of it."""
    values = {field.name: getattr(args, field.name, None) for field in fields(budget)}
    return replace(budget, **{name: value for name, value in values.items() if value})
