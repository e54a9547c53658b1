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
from .metrics import options

CONFIGS = Path(__file__).parent / "configs"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stillmotion.training", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="train a model of a paper as a config says; it also resumes")
    doctor = verbs.add_parser("doctor", help="what a config needs: sizes, memory, seconds a step, what each loss costs")
    encode = verbs.add_parser("latents", help="encode drawn clips, or a folder of videos or images, for a base")
    encode.add_argument("--videos", type=Path, help="folder of videos, each with its caption in NAME.txt")
    encode.add_argument("--images", type=Path, help="folder of images with captions in NAME.txt: pseudo-videos of them")
    encode.add_argument("--zoompan", action="store_true", help="make pseudo-videos as VidRD's paper does, by FFmpeg")
    encode.add_argument("--kept", type=Path, help="a list of `select --videos`: encode only its clips")
    encode.add_argument("--clips", type=int, default=1000, help="how many drawn clips or pseudo-videos")
    encode.add_argument("--size", type=int, default=256, help="width and height in pixels")
    encode.add_argument("--frames", type=int, default=24, help="frames of a clip")
    encode.add_argument("--fps", type=float, default=6.0, help="frames a second of the clips, for videos")
    select = verbs.add_parser("select", help="list the clips that move as they should, or fit their captions best")
    select.add_argument("stage", choices=("motion", "clip"), help="what looks at them")
    _select_options(select)
    for verb in (train, doctor, encode, select):
        verb.add_argument("config", help="a TOML file, or a bundled one: harivo_pocket, vidrd_pocket, ...")
        if verb is not encode:
            verb.add_argument("--latents", type=Path, help="folder of latents (data.latents of the config)")
    train.add_argument("--start", type=Path, help="a file to begin with (model.start of the config)")
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
    command.add_options(ablate, tuple(registry.ablations()))
    options.add_options(verbs.add_parser("eval", help="FVD, IS, CLIPSIM, FFF of a folder of videos"))
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
    for verb in (train, encode, select, export, ablate, *recipes):
        verb.add_argument("--out", type=Path, required=verb is not train, help="folder (or file) that is written")
    for verb in (train, ablate, *recipes):
        verb.add_argument("--processes", type=int, default=1, help="processes that share each batch, one thread each")
    for verb in (train, doctor, encode, select, ablate, *recipes):
        verb.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the config")
        verb.add_argument(
            "--tokenizer", type=Path, help="folder with CLIP's vocab.json and merges.txt (default: ComfyUI's)"
        )
    return parser


def _select_options(select: argparse.ArgumentParser) -> None:
    """Defaults of the motion filter are those of `data.motion_score.MotionFilter`."""
    select.add_argument("--videos", type=Path, help="folder of videos with captions in NAME.txt, instead of --latents")
    select.add_argument("--frames", type=int, default=16, help="frames of a clip, for videos")
    select.add_argument("--fps", type=float, default=8.0, help="frames a second of the clips, for videos")
    select.add_argument("--after", type=Path, help="the list of the stage before: look at its kept clips alone")
    select.add_argument("--low", type=float, help="motion: smallest mean flow, pixels a frame at --width (default: 1)")
    select.add_argument("--high", type=float, help="motion: largest mean flow (default: 20)")
    select.add_argument("--residual", type=float, help="motion: what the flow may leave, 0..255; 0: any (default: 5)")
    select.add_argument("--method", help="motion: dis (default) or farneback, both of OpenCV")
    select.add_argument(
        "--width", type=int, help="motion: pixels of the square that flow is measured on (default: 320)"
    )
    select.add_argument("--stride", type=int, help="motion: frames between the two of a pair (default: 1)")
    select.add_argument("--clip", type=Path, help="clip: folder with a CLIP of transformers")
    select.add_argument("--top", type=int, help="clip: how many clips are kept")
    select.add_argument("--clip-frames", type=int, default=4, help="clip: frames of a clip that are looked at")


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
    source |= {"kept": args.kept}
    encode(table, tokenizer, args.out, size=args.size, frames=args.frames, fps=args.fps, **source)


def run_select(args: argparse.Namespace) -> None:
    from .data.motion_score import MotionFilter
    from .plans.errors import ConfigError
    from .tools import select

    if bool(args.videos) == bool(args.latents):
        raise ConfigError("select: give one of --latents DIR and --videos DIR")
    if args.stage == "clip" and not (args.clip and args.top):
        raise ConfigError("select clip: give --clip FOLDER (a CLIP of transformers) and --top N (how many clips)")
    told = {field.name: getattr(args, field.name) for field in fields(MotionFilter)}
    chosen = MotionFilter(**{name: value for name, value in told.items() if value is not None})
    if args.videos:
        clips = select.OfVideos(args.videos, frames=args.frames, fps=args.fps, size=chosen.width)
    else:
        clips = select.OfLatents(args.latents, _plan(args).base, tokenizer_folder(args.tokenizer))
    if args.stage == "motion":
        select.by_motion(clips, chosen, args.out, args.after)
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

    try:
        view(args, tokenizer_folder(args.tokenizer) if args.what == "tokens" else None)
    except ValueError as error:
        raise SystemExit(str(error)) from error


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
    logs.begin()
    import torch

    torch.manual_seed(0)  # the first weights; everything else is keyed by sample
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from .engine.loop import ChangedRun
    from .plans.errors import ConfigError

    try:
        VERBS[args.verb](args)
    except (ConfigError, ChangedRun) as error:
        raise SystemExit(str(error)) from error
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be said of a config is said once, before processes are made."""
    from .plans.errors import ConfigError

    try:
        _plan(args)
    except ConfigError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
