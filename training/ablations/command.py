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
    "dreamvideo": ("model", "motion", "length", "rows"),
}


def add_options(ablate: argparse.ArgumentParser) -> None:
    ablate.add_argument("system", choices=tuple(OPTIONS), help="pseudo: VidRD's pseudo-videos")
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


def run(args: argparse.Namespace, tokenizer: Path) -> None:
    """The ablation that was asked for. ConfigError for an option of another one."""
    from ..plans.errors import ConfigError

    for name in {name for names in OPTIONS.values() for name in names} - set(OPTIONS[args.system]):
        if getattr(args, name):
            raise ConfigError(f"--{name} is not for `ablate {args.system}`; leave it out")
    ablate = _module(args.system)
    options = ablate.Options(
        out=args.out,
        tokenizer=tokenizer,
        budget=_given(ablate.QUICK if args.quick else ablate.Budget(), args),
        split=args.split,
        processes=args.processes,
    )
    ablate.ablate(replace(options, **_own(args, ablate)))


def _module(system: str) -> Any:
    from . import artv as ablate_artv
    from . import dreamvideo as ablate_dreamvideo
    from . import harivo as ablate
    from . import pseudo as ablate_data
    from . import vidrd as ablate_reuse

    modules = {"harivo": ablate, "vidrd": ablate_reuse, "pseudo": ablate_data, "artv": ablate_artv}
    return (modules | {"dreamvideo": ablate_dreamvideo})[system]


def _own(args: argparse.Namespace, ablate: Any) -> dict[str, Any]:
    """What the command says that not every ablation takes, as their Options name it."""
    own: dict[str, Any] = {name: getattr(args, name) for name in ("latents", "model", "decoder", "motion")}
    own["changes"] = tuple(args.set)
    own["rows"] = ablate.chosen(args.rows) if args.rows else None
    own["seeds"] = tuple(range(args.seeds)) if args.seeds else None
    return {name: value for name, value in own.items() if value}


def _given(budget: Any, args: argparse.Namespace) -> Any:
    """The budget with what the command says of it."""
    told = {field.name: getattr(args, field.name, None) for field in fields(budget)}
    return replace(budget, **{name: value for name, value in told.items() if value})
