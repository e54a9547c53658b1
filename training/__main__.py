"""python -m stillmotion.training VERB: train, doctor, ablate, latents, export, view, pocket, motion, lora, control."""

import argparse
import logging
import os
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent / "configs"


ABLATE_OPTIONS = {  # those that not every ablation takes
    "harivo": ("latents", "rows", "seeds", "steps", "set"),
    "vidrd": ("model", "decoder", "length"),
    "pseudo": ("model", "steps", "images", "set"),
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stillmotion.training", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="train a HARIVO or VidRD model as a config says; it also resumes")
    doctor = verbs.add_parser("doctor", help="what a config needs: sizes, memory, seconds a step, what each loss costs")
    encode = verbs.add_parser("latents", help="encode drawn clips, or a folder of videos or images, for a base")
    encode.add_argument("--videos", type=Path, help="folder of videos, each with its caption in NAME.txt")
    encode.add_argument("--images", type=Path, help="folder of images with captions in NAME.txt: pseudo-videos of them")
    encode.add_argument("--zoompan", action="store_true", help="make pseudo-videos as VidRD's paper does, by FFmpeg")
    encode.add_argument("--clips", type=int, default=1000, help="how many drawn clips or pseudo-videos")
    encode.add_argument("--size", type=int, default=256, help="width and height in pixels")
    encode.add_argument("--frames", type=int, default=24, help="frames of a clip")
    encode.add_argument("--fps", type=float, default=6.0, help="frames a second of the clips, for videos")
    for verb in (train, doctor, encode):
        verb.add_argument("config", help="a TOML file, or a bundled one: harivo_pocket, vidrd_pocket, ...")
        if verb is not encode:
            verb.add_argument("--latents", type=Path, help="folder of latents (data.latents of the config)")
    export = verbs.add_parser("export", help="the temporal layers of a motion or HARIVO file in another layout")
    export.add_argument("file", type=Path)
    export.add_argument("--layout", choices=("stillmotion", "animatediff", "diffusers"), required=True)
    pocket = verbs.add_parser("pocket", help="train the pocket Stable Diffusion, or one of its stages")
    pocket.add_argument("stage", choices=("all", "vae", "text", "judge", "video_judge", "latents", "unet", "export"))
    pocket.add_argument("--start", type=Path, help="a folder like pocket/: take its networks, train its U-Net further")
    motion = verbs.add_parser("motion", help="train temporal layers on the frozen pocket model")
    motion.add_argument("--start", type=Path, help="a motion file to start from")
    motion.add_argument("--latents", type=Path, required=True, help="folder of latents (stage `latents` of the pocket)")
    lora = verbs.add_parser(
        "lora", help="train a style LoRA of the frozen pocket model, on frames that it draws itself"
    )
    control = verbs.add_parser("control", help="train a ControlNet of the frozen pocket model that draws along edges")
    control.add_argument(
        "--latents", type=Path, required=True, help="folder of latents (stage `latents` of the pocket)"
    )
    for verb in (train, motion, lora, control):
        verb.add_argument(
            "--allow", action="append", default=[], metavar="NAME", help="resume although NAME has changed"
        )
    for verb in (motion, lora, control):
        verb.add_argument("--pocket", type=Path, help="the base (default: the bundled pocket.safetensors)")
    ablate = verbs.add_parser(
        "ablate", help="train and score a method's parts, one after the other, on the pocket model"
    )
    ablate.add_argument("system", choices=tuple(ABLATE_OPTIONS), help="pseudo: VidRD's pseudo-videos")
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
        help="vidrd: the motion, HARIVO or VidRD file that draws; pseudo: the VidRD file to start from",
    )
    ablate.add_argument("--decoder", type=Path, help="vidrd: a temporal decoder file to look at (default: bundled)")
    ablate.add_argument("--length", type=int, help="vidrd: clips of a video")
    view = verbs.add_parser("view", help="draw what a method does, as a PNG file, on the bundled pocket model")
    view.add_argument("what", choices=("slice", "noise", "mapping", "tokens"))
    view.add_argument("file", type=Path, nargs="?", help="slice: a video or animation; else a HARIVO file")
    view.add_argument("--out", type=Path, required=True, help="the PNG file")
    view.add_argument("--line", choices=("row", "column"), default="row", help="slice: direction of the line")
    view.add_argument("--position", type=float, default=0.5, help="slice: where the line lies, 0 to 1")
    view.add_argument("--prompt", help="tokens: the text (default: what the clip shows)")
    view.add_argument("--timestep", type=int, default=500, help="tokens: noise level, 0 to 999")
    view.add_argument("--frames", type=int, default=16, help="frames of a clip")
    view.add_argument("--seed", type=int, default=0, help="of the noise; tokens: also which held-out clip is noised")
    view.add_argument(
        "--tokenizer", type=Path, help="folder with CLIP's vocab.json and merges.txt (default: ComfyUI's)"
    )
    recipes = {pocket: "pocket", motion: "motion_pocket", lora: "lora_pocket", control: "control_pocket"}
    for verb, name in recipes.items():
        default = CONFIGS / f"{name}.toml"
        verb.add_argument("--recipe", type=Path, default=default, help=f"TOML file (default: {default.name})")
    for verb in (train, encode, export, ablate, *recipes):
        verb.add_argument("--out", type=Path, required=verb is not train, help="folder (or file) that is written")
    for verb in (train, ablate, *recipes):
        verb.add_argument("--processes", type=int, default=1, help="processes that share each batch, one thread each")
    for verb in (train, doctor, encode, ablate, *recipes):
        verb.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the config")
        verb.add_argument(
            "--tokenizer", type=Path, help="folder with CLIP's vocab.json and merges.txt (default: ComfyUI's)"
        )
    return parser


def recipe(path: Path, changes: list[str]) -> dict[str, dict[str, Any]]:
    """The recipe file with `TABLE.KEY=VALUE` changes; an unknown table or key is an error."""
    tables = tomllib.loads(path.read_text())
    for change in changes:
        name, _, value = change.partition("=")
        table, _, key = name.partition(".")
        if key not in tables.get(table, {}):
            known = ", ".join(f"{t}.{k}" for t, keys in tables.items() for k in keys)
            raise SystemExit(f"--set {change}: there is no {name} in {path.name}; known: {known}")
        tables[table][key] = tomllib.loads(f"value = {value}")["value"]
    return tables


def tokenizer_folder(given: Path | None) -> Path:
    """CLIP's vocabulary: ComfyUI carries it, and diffusers has none without a download."""
    folder = given or Path(os.environ.get("COMFYUI_DIR", "")) / "comfy" / "sd1_tokenizer"
    if not (folder / "vocab.json").exists():
        raise SystemExit(
            f"no CLIP vocabulary in {folder}; set COMFYUI_DIR to a ComfyUI folder, or give --tokenizer DIR"
        )
    return folder


def spawn(processes: int) -> int:
    """This command again, in several processes that torch.distributed joins."""
    given = sys.argv[1:]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    # "--": torch.distributed.run would take our --start for a short form of its own --start-method
    command += ["-m", "--", "stillmotion.training", *given]
    return subprocess.run(command, env=environment, check=False).returncode


def adopt(args: argparse.Namespace) -> None:
    """Before any stage runs, and once: the finished networks of --start become finished stages of the run."""
    from .pocket.stages import Stages

    stages = Stages(args.out, {}, tokenizer_folder(args.tokenizer))
    if not stages.done("vae").exists():
        stages.adopt(args.start)


def draw(args: argparse.Namespace) -> None:
    """The LoRA's frames, once, before processes are made."""
    from .pocket.lora import encode

    encode(args.out, recipe(args.recipe, args.set)["lora"], args.pocket)


def run_pocket(args: argparse.Namespace) -> None:
    from .pocket.stages import Stages

    tables = recipe(args.recipe, args.set)
    Stages(args.out, tables, tokenizer_folder(args.tokenizer), start=args.start).run(args.stage)


def run_motion(args: argparse.Namespace) -> None:
    from .motion import train

    tables, tokenizer = recipe(args.recipe, args.set), tokenizer_folder(args.tokenizer)
    train(args.out, tables, tokenizer, pocket=args.pocket, start=args.start, shards=args.latents, allow=args.allow)


def run_lora(args: argparse.Namespace) -> None:
    from .pocket.lora import train

    tables, tokenizer = recipe(args.recipe, args.set), tokenizer_folder(args.tokenizer)
    train(args.out, tables, tokenizer, pocket=args.pocket, allow=args.allow)


def run_control(args: argparse.Namespace) -> None:
    from .pocket.control import train

    tables, tokenizer = recipe(args.recipe, args.set), tokenizer_folder(args.tokenizer)
    train(args.out, tables, tokenizer, shards=args.latents, pocket=args.pocket, allow=args.allow)


def run_train(args: argparse.Namespace) -> None:
    plan = _plan(args)
    if plan.system == "vidrd":
        from .vidrd import train
    elif plan.system == "vidrd_decoder":
        from .vidrd_decoder import train
    else:
        from .harivo import train
    train(plan, tokenizer_folder(args.tokenizer), allow=args.allow)


def run_doctor(args: argparse.Namespace) -> None:
    from .config import ConfigError
    from .doctor import examine

    plan = _plan(args)
    if plan.system != "harivo":
        raise ConfigError(f"doctor looks at the losses of HARIVO; {args.config} is of {plan.system}: try train.steps=2")
    examine(plan, tokenizer_folder(args.tokenizer))


def run_latents(args: argparse.Namespace) -> None:
    from .data.prepare import encode

    table, tokenizer = _plan(args).base, tokenizer_folder(args.tokenizer)
    source = {"videos": args.videos, "images": args.images, "paper": args.zoompan, "clips": args.clips}
    encode(table, tokenizer, args.out, size=args.size, frames=args.frames, fps=args.fps, **source)


def run_export(args: argparse.Namespace) -> None:
    from .export import export

    export(args.file, args.layout, args.out)


def run_ablate(args: argparse.Namespace) -> None:
    from .config import ConfigError

    for name in {name for names in ABLATE_OPTIONS.values() for name in names} - set(ABLATE_OPTIONS[args.system]):
        if getattr(args, name):
            raise ConfigError(f"--{name} is not for `ablate {args.system}`; leave it out")
    {"harivo": ablate_harivo, "vidrd": ablate_vidrd, "pseudo": ablate_pseudo}[args.system](args)


def ablate_harivo(args: argparse.Namespace) -> None:
    from . import ablate

    ablate.ablate(
        ablate.Options(
            out=args.out,
            tokenizer=tokenizer_folder(args.tokenizer),
            budget=_given(ablate.QUICK if args.quick else ablate.Budget(), args),
            latents=args.latents,
            rows=ablate.chosen(args.rows or "all"),
            seeds=tuple(range(args.seeds or 1)),
            split=args.split,
            processes=args.processes,
            changes=tuple(args.set),
        )
    )


def ablate_vidrd(args: argparse.Namespace) -> None:
    from . import ablate_reuse as ablate

    options = ablate.Options(
        out=args.out,
        tokenizer=tokenizer_folder(args.tokenizer),
        budget=_given(ablate.QUICK if args.quick else ablate.Budget(), args),
        split=args.split,
        processes=args.processes,
    )
    given = {name: value for name in ("model", "decoder") if (value := getattr(args, name))}
    ablate.ablate(replace(options, **given))


def ablate_pseudo(args: argparse.Namespace) -> None:
    from . import ablate_data as ablate

    options = ablate.Options(
        out=args.out,
        tokenizer=tokenizer_folder(args.tokenizer),
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


def run_view(args: argparse.Namespace) -> None:
    from .view import view

    try:
        view(args, tokenizer_folder(args.tokenizer) if args.what == "tokens" else None)
    except ValueError as error:
        raise SystemExit(str(error)) from error


def _plan(args: argparse.Namespace):
    from . import config

    latents = getattr(args, "latents", None)
    changes = [*args.set, *([f"data.latents='{latents}'"] if latents else [])]
    return config.read(config.find(args.config), changes, out=getattr(args, "out", None))


VERBS = {
    "train": run_train,
    "doctor": run_doctor,
    "latents": run_latents,
    "export": run_export,
    "ablate": run_ablate,
    "view": run_view,
    "pocket": run_pocket,
    "motion": run_motion,
    "lora": run_lora,
    "control": run_control,
}


def main(words: list[str] | None = None) -> int:
    args = arguments().parse_args(words)
    begins = "RANK" not in os.environ  # else one of the processes that `spawn` made
    if begins and args.verb == "pocket" and args.start:
        adopt(args)
    if begins and args.verb == "train":
        _check(args)
    if begins and args.verb == "lora":
        draw(args)
    if begins and args.verb != "ablate" and getattr(args, "processes", 1) > 1:
        return spawn(args.processes)
    logging.basicConfig(
        level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING, format="%(asctime)s %(message)s"
    )
    import torch

    torch.manual_seed(0)  # the first weights; everything else is keyed by sample
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from .config import ConfigError
    from .engine import ChangedRun

    try:
        VERBS[args.verb](args)
    except (ConfigError, ChangedRun) as error:
        raise SystemExit(str(error)) from error
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be said of a config is said once, before processes are made."""
    from .config import ConfigError

    try:
        _plan(args)
    except ConfigError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
