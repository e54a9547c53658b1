"""The verb `ablate`: its options, and which ablation takes which. Nothing here needs torch before one is run."""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

OPTIONS = {  # those that not every ablation takes
    "harivo": ("latents", "rows", "seeds", "steps", "set"),
    "vidrd": ("model", "decoder", "length"),
    "pseudo": ("model", "steps", "images", "set"),
    "artv": ("model", "length"),
}


def add_options(ablate: argparse.ArgumentParser) -> None:
    ablate.add_argument("system", choices=tuple(OPTIONS), help="pseudo: VidRD's pseudo-videos")
    ablate.add_argument("--quick", action="store_true", help="the same, small: some 15 minutes of two cores")
    ablate.add_argument("--split", choices=("test", "validation"), default="test", help="which held-out prompts")
    ablate.add_argument("--prompts", type=int, help="that are scored")
    ablate.add_argument("--sampling", type=int, help="DDIM steps")
    ablate.add_argument("--latents", type=Path, help="harivo: folder of latents (default: drawn clips are encoded)")
    ablate.add_argument("--rows", help="harivo: rows by name, separated by commas (default: all)")
    ablate.add_argument("--seeds", type=int, help="harivo: trainings of each row, seeds from 0 on (default: 1)")
    ablate.add_argument("--steps", type=int, help="harivo, pseudo: of each training")
    ablate.add_argument("--images", type=int, help="pseudo: images beside the clips")
    ablate.add_argument(
        "--model",
        type=Path,
        help="vidrd: the motion, HARIVO or VidRD file that draws; artv: the ART-V file; pseudo: the VidRD file that a "
        "training starts from",
    )
    ablate.add_argument("--decoder", type=Path, help="vidrd: a temporal decoder file to look at (default: bundled)")
    ablate.add_argument("--length", type=int, help="vidrd: clips of a video; artv: frames")


def run(args: argparse.Namespace, tokenizer: Path) -> None:
    """The ablation that was asked for. ConfigError for an option of another one."""
    from .config import ConfigError

    for name in {name for names in OPTIONS.values() for name in names} - set(OPTIONS[args.system]):
        if getattr(args, name):
            raise ConfigError(f"--{name} is not for `ablate {args.system}`; leave it out")
    runs = {"harivo": _harivo, "vidrd": _sampling, "artv": _sampling, "pseudo": _pseudo}
    runs[args.system](args, tokenizer)


def _harivo(args: argparse.Namespace, tokenizer: Path) -> None:
    from . import ablate

    ablate.ablate(
        ablate.Options(
            out=args.out,
            tokenizer=tokenizer,
            budget=_given(ablate.QUICK if args.quick else ablate.Budget(), args),
            latents=args.latents,
            rows=ablate.chosen(args.rows or "all"),
            seeds=tuple(range(args.seeds or 1)),
            split=args.split,
            processes=args.processes,
            changes=tuple(args.set),
        )
    )


def _sampling(args: argparse.Namespace, tokenizer: Path) -> None:
    """Of a method whose rows need no training of their own."""
    from . import ablate_artv, ablate_reuse

    ablate: Any = ablate_reuse if args.system == "vidrd" else ablate_artv
    options = ablate.Options(
        out=args.out,
        tokenizer=tokenizer,
        budget=_given(ablate.QUICK if args.quick else ablate.Budget(), args),
        split=args.split,
        processes=args.processes,
    )
    given = {name: value for name in ("model", "decoder") if (value := getattr(args, name))}
    ablate.ablate(replace(options, **given))


def _pseudo(args: argparse.Namespace, tokenizer: Path) -> None:
    from . import ablate_data as ablate

    options = ablate.Options(
        out=args.out,
        tokenizer=tokenizer,
        budget=_given(ablate.QUICK if args.quick else ablate.Budget(), args),
        split=args.split,
        processes=args.processes,
        changes=tuple(args.set),
    )
    ablate.ablate(replace(options, model=args.model) if args.model else options)


def _given(budget: Any, args: argparse.Namespace) -> Any:
    """The budget with what the command says of it."""
    told = {field.name: getattr(args, field.name, None) for field in fields(budget)}
    return replace(budget, **{name: value for name, value in told.items() if value})
