"""python -m stillmotion.training VERB: train, doctor, eval, ablate, latents, select, export, view, pocket, ..."""

import argparse
import os
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import registry
from .ablations import command
from .engine import logs
from .failures import reported
from .metrics import options
from .plans import config

CONFIGS = Path(__file__).parent / "configs"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stillmotion.training", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="train a model with a config, or resume an interrupted training")
    doctor = verbs.add_parser("doctor", help="measure what a config needs: sizes, memory, time per step, cost by loss")
    encode = verbs.add_parser("latents", help="encode drawn clips, or a folder of videos or images, for a base")
    encode.add_argument("--videos", type=Path, help="folder of videos, each with its caption in NAME.txt")
    encode.add_argument("--images", type=Path, help="folder of images with captions in NAME.txt, for pseudo-videos")
    encode.add_argument("--zoompan", action="store_true", help="make pseudo-videos with FFmpeg, as in VidRD's paper")
    encode.add_argument("--selection", type=Path, help="a list of `select --videos`; only its clips are encoded")
    encode.add_argument("--clips", type=_positive, default=1000, help="number of drawn clips or pseudo-videos")
    encode.add_argument("--size", type=_positive, default=256, help="width and height in pixels")
    encode.add_argument("--frames", type=_positive, default=24, help="frames per clip")
    encode.add_argument("--fps", type=_rate, default=6.0, help="frames per second of the clips, for videos")
    select = verbs.add_parser("select", help="list the clips with suitable motion, or with the best captions")
    select.add_argument("stage", choices=("motion", "clip"), help="the score to select by")
    _select_options(select)
    for verb in (train, doctor, encode, select):
        verb.add_argument("config", help="a TOML file, or the name of a bundled one: harivo_pocket, vidrd_pocket, ...")
        if verb is not encode:
            verb.add_argument("--latents", type=Path, help="folder of latents (data.latents of the config)")
    train.add_argument("--start", type=Path, help="a file with the initial weights (model.start of the config)")
    export = verbs.add_parser("export", help="write the temporal layers of a motion or HARIVO file in another layout")
    export.add_argument("file", type=Path)
    export.add_argument("--layout", choices=("stillmotion", "animatediff", "diffusers"), required=True)
    pocket = verbs.add_parser("pocket", help="train the pocket model, or one of its stages")
    pocket.add_argument("stage", choices=("all", "vae", "text", "judge", "video_judge", "latents", "unet", "export"))
    pocket.add_argument("--start", type=Path, help="a folder like pocket/: use its networks, train its U-Net further")
    motion = verbs.add_parser("motion", help="train temporal layers on the frozen pocket model")
    motion.add_argument("--start", type=Path, help="a motion file to start from")
    motion.add_argument("--latents", type=Path, required=True, help="folder of latents (stage `latents` of the pocket)")
    lora = verbs.add_parser("lora", help="train a style LoRA of the frozen pocket model, on rendered frames")
    control = verbs.add_parser("control", help="train an edge ControlNet of the frozen pocket model")
    control.add_argument(
        "--latents", type=Path, required=True, help="folder of latents (stage `latents` of the pocket)"
    )
    for verb in (train, motion, lora, control):
        verb.add_argument(
            "--allow", action="append", default=[], metavar="NAME", help="resume even though NAME has changed"
        )
    for verb in (motion, lora, control):
        verb.add_argument("--pocket", type=Path, help="the base (default: the bundled pocket.safetensors)")
    ablate = verbs.add_parser("ablate", help="measure the effect of a method's parts on the pocket model")
    command.add_options(ablate, tuple(registry.ablations()))
    options.add_options(verbs.add_parser("eval", help="compute FVD, IS, CLIPSIM and FFF of a folder of videos"))
    view = verbs.add_parser("view", help="draw the effect of a method on the bundled pocket model, as a PNG file")
    view.add_argument("what", choices=("slice", "noise", "mapping", "tokens"))
    view.add_argument("file", type=Path, nargs="?", help="slice: a video or animation; other views: a HARIVO file")
    view.add_argument("--out", type=Path, required=True, help="the PNG file")
    view.add_argument("--line", choices=("row", "column"), default="row", help="slice: direction of the line")
    view.add_argument("--position", type=float, default=0.5, help="slice: position of the line, 0 to 1")
    view.add_argument("--prompt", help="tokens: the text (default: the caption of the clip)")
    view.add_argument("--timestep", type=int, default=500, help="tokens: noise level, 0 to 999")
    view.add_argument("--frames", type=_positive, default=16, help="frames per clip")
    view.add_argument("--seed", type=int, default=0, help="seed of the noise; tokens: also number of the held-out clip")
    view.add_argument(
        "--tokenizer", type=Path, help="folder with CLIP's vocab.json and merges.txt (default: ComfyUI's)"
    )
    recipes = {pocket: "pocket", motion: "motion_pocket", lora: "lora_pocket", control: "control_pocket"}
    for verb, name in recipes.items():
        default = CONFIGS / f"{name}.toml"
        verb.add_argument("--recipe", type=Path, default=default, help=f"TOML file (default: {default.name})")
    for verb in (train, encode, select, export, ablate, *recipes):
        verb.add_argument("--out", type=Path, required=verb is not train, help="output folder (or file)")
    for verb in (train, ablate, *recipes):
        verb.add_argument(
            "--processes", type=_positive, default=1, help="number of processes that share each batch, one thread each"
        )
    for verb in (train, doctor, encode, select, ablate, *recipes):
        verb.add_argument(
            "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change a value of the config"
        )
        verb.add_argument(
            "--tokenizer", type=Path, help="folder with CLIP's vocab.json and merges.txt (default: ComfyUI's)"
        )
    for verb in verbs.choices.values():
        verb.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser


def _positive(text: str) -> int:
    """A whole number of 1 or more."""
    if not text.isdecimal() or not int(text[:10]) >= 1 or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _rate(text: str) -> float:
    """Frames per second, above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not a number of frames per second above 0")
    return value


def _select_options(select: argparse.ArgumentParser) -> None:
    """The defaults of the motion filter are those of `data.motion_score.MotionFilter`."""
    select.add_argument("--videos", type=Path, help="folder of videos with captions in NAME.txt, instead of --latents")
    select.add_argument("--frames", type=_positive, default=16, help="frames per clip, for videos")
    select.add_argument("--fps", type=_rate, default=8.0, help="frames per second of the clips, for videos")
    select.add_argument("--after", type=Path, help="the list of the previous stage; only its kept clips are scored")
    select.add_argument("--low", type=float, help="motion: smallest mean flow, pixels/frame at --width (default: 1)")
    select.add_argument("--high", type=float, help="motion: largest mean flow (default: 20)")
    select.add_argument("--residual", type=float, help="motion: largest residual, 0..255; 0: no limit (default: 5)")
    select.add_argument("--method", help="motion: dis (default) or farneback, both from OpenCV")
    select.add_argument(
        "--width", type=_positive, help="motion: side of the frames in the flow, in pixels (default: 320)"
    )
    select.add_argument("--stride", type=_positive, help="motion: distance of the frames of a pair (default: 1)")
    select.add_argument("--clip", type=Path, help="clip: folder with a CLIP model of transformers")
    select.add_argument("--top", type=_positive, help="clip: number of clips to keep")
    select.add_argument("--clip-frames", type=_positive, default=4, help="clip: number of frames to score in each clip")


def recipe(path: Path, changes: list[str]) -> dict[str, dict[str, Any]]:
    """The tables of a recipe file, with `TABLE.KEY=VALUE` changes; an unknown table or key is an error."""
    tables = config.toml(path)
    for change in changes:
        name, _, value = change.partition("=")
        table, _, key = name.partition(".")
        if key not in tables.get(table, {}):
            names = ", ".join(f"{t}.{k}" for t, keys in tables.items() for k in keys)
            raise SystemExit(f"--set {change}: there is no {name} in {path.name}; use one of {names}")
        try:
            tables[table][key] = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError) as error:
            raise SystemExit(
                f"--set {change}: {value!r} is no value of TOML ({error}); write text in quotes"
            ) from error
    return tables


def tokenizer_folder(option: Path | None) -> Path:
    """The folder of CLIP's vocabulary: by default ComfyUI's copy, since diffusers would have to download one."""
    folder = option or Path(os.environ.get("COMFYUI_DIR", "")) / "comfy" / "sd1_tokenizer"
    if not (folder / "vocab.json").exists():
        raise SystemExit(
            f"there is no CLIP vocabulary in {folder}; set COMFYUI_DIR to a ComfyUI folder, or give --tokenizer DIR"
        )
    return folder


def spawn(processes: int) -> int:
    """Run this command again in several processes, which torch.distributed connects."""
    arguments = sys.argv[1:]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    # without "--", torch.distributed.run would take our --start for an abbreviation of its own --start-method
    command += ["-m", "--", "stillmotion.training", *arguments]
    return subprocess.run(command, env=environment, check=False).returncode


def adopt(args: argparse.Namespace) -> None:
    """Before any stage runs: use the networks of --start as complete stages of the run, once."""
    from .pocket.stages import Stages

    stages = Stages(args.out, recipe(args.recipe, args.set), tokenizer_folder(args.tokenizer))
    if not stages.done("vae").exists():
        stages.adopt(args.start)


def encode_lora_frames(args: argparse.Namespace) -> None:
    """Encode the LoRA's frames, once, before further processes start."""
    from .data.worlds import world_of
    from .pocket.lora import encode

    tables = recipe(args.recipe, args.set)
    encode(args.out, tables["lora"], args.pocket, world_of(tables))


def run_pocket(args: argparse.Namespace) -> None:
    from .pocket.stages import Stages

    tables = recipe(args.recipe, args.set)
    Stages(args.out, tables, tokenizer_folder(args.tokenizer), start=args.start).run(args.stage)


def run_motion(args: argparse.Namespace) -> None:
    from .pocket.motion import train

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
    registry.train(_plan(args), tokenizer_folder(args.tokenizer), allow=args.allow)


def run_doctor(args: argparse.Namespace) -> None:
    from .tools.doctor import examine

    plan = _plan(args)
    task, _base = registry.prepare(plan, tokenizer_folder(args.tokenizer))
    examine(plan, task)


def run_latents(args: argparse.Namespace) -> None:
    from .tools.latents import encode

    table, tokenizer = _plan(args).base, tokenizer_folder(args.tokenizer)
    source = {"videos": args.videos, "images": args.images, "paper": args.zoompan, "clips": args.clips}
    source |= {"selection": args.selection}
    encode(table, tokenizer, args.out, size=args.size, frames=args.frames, fps=args.fps, **source)


def run_select(args: argparse.Namespace) -> None:
    from .data.motion_score import MotionFilter
    from .plans.errors import ConfigError
    from .tools import select

    if bool(args.videos) == bool(args.latents):
        raise ConfigError("select: give one of --latents DIR and --videos DIR")
    if args.stage == "clip" and not (args.clip and args.top):
        raise ConfigError("select clip: give --clip FOLDER (a CLIP model of transformers) and --top N (clips to keep)")
    values = {field.name: getattr(args, field.name) for field in fields(MotionFilter)}
    settings = MotionFilter(**{name: value for name, value in values.items() if value is not None})
    if args.videos:
        clips = select.OfVideos(args.videos, frames=args.frames, fps=args.fps, size=settings.width)
    else:
        clips = select.OfLatents(args.latents, _plan(args).base, tokenizer_folder(args.tokenizer))
    if args.stage == "motion":
        select.by_motion(clips, settings, args.out, args.after)
    else:
        select.by_clip(clips, args.clip, args.out, top=args.top, frames=args.clip_frames, after=args.after)


def run_export(args: argparse.Namespace) -> None:
    from .tools.export import export

    export(args.file, args.layout, args.out)


def run_ablate(args: argparse.Namespace) -> None:
    command.run(args, registry.ablations()[args.system](), tokenizer_folder(args.tokenizer))


def run_eval(args: argparse.Namespace) -> None:
    options.run(args)


def run_view(args: argparse.Namespace) -> None:
    from .tools.view import view

    view(args, tokenizer_folder(args.tokenizer) if args.what == "tokens" else None)


def _plan(args: argparse.Namespace):
    files = {"data.latents": getattr(args, "latents", None), "model.start": getattr(args, "start", None)}
    changes = [*args.set, *(f"{key}='{path}'" for key, path in files.items() if path)]
    return registry.read(registry.find(args.config), changes, out=getattr(args, "out", None))


VERBS = {
    "train": run_train,
    "doctor": run_doctor,
    "latents": run_latents,
    "select": run_select,
    "export": run_export,
    "ablate": run_ablate,
    "eval": run_eval,
    "view": run_view,
    "pocket": run_pocket,
    "motion": run_motion,
    "lora": run_lora,
    "control": run_control,
}


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    with reported(show_traceback=args.traceback):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    is_parent = "RANK" not in os.environ  # not one of the processes that `spawn` started
    if is_parent and args.verb == "pocket" and args.start:
        adopt(args)
    if is_parent and args.verb == "train":
        _plan(args)  # errors of a config are reported once, before further processes start
    if is_parent and args.verb == "lora":
        encode_lora_frames(args)
    if is_parent and args.verb != "ablate" and getattr(args, "processes", 1) > 1:
        return spawn(args.processes)
    logs.configure()
    import torch

    torch.manual_seed(0)  # for the initial weights; all other random numbers depend on the sample
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    VERBS[args.verb](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
