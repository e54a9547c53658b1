"""python -m stillmotion.training ablate pseudo: what images teach a video model, at rest and under a moving camera.

VidRD's pseudo-videos (arXiv 2309.03549, section 4.2): captioned images, over which a camera zooms and pans, stand in
for videos. Here a few drawn clips are the videos, and frames of others the images; no caption of these tells a motion.
Each row trains VidRD from the same file, with the same budget and seed, on the same clips, and differs in what it makes
of the images; then it draws the same prompts from the same noise.
"""

import json
import logging
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from ...evaluation.judges.video_judge import FRAMES
from ...evaluation.scores import report
from ...evaluation.scores.score import Sample, compare, score
from ...model_patches.pocket import SCALE
from ..data import latents, pseudo, sprites
from ..metrics import judging
from ..plans import config
from ..plans.common import POCKET, BaseTable
from ..plans.vidrd import VidrdPlan
from ..systems import bases
from ..tools.latents import SHARD
from .common import SPLITS, command, once, run_training, shares
from .jobs import MOTIONS, ClipJob, draw_all, drawn

log = logging.getLogger(__name__)

OPTIONS = ("model", "steps", "images", "set")  # of the verb `ablate`

CONFIG = "vidrd_pocket"
SIZE = 64
IMAGE = 2 * SIZE  # pixels of an image, of which a camera shows a part
IMAGES_FROM = 100_000  # drawn clips from here on lend one frame each
START = POCKET / "vidrd.safetensors"
READ = (
    "The paper fine-tunes with and without pseudo-videos: FVD 433.22 with, 451.16 without (better), "
    "IS 40.87 and 42.00 (worse), on UCF-101."
)


@dataclass(frozen=True)
class Row:
    key: str
    name: str
    show: pseudo.Render | None
    """What a camera makes of an image; None: the images are left out."""


def at_rest(image: Tensor, camera: pseudo.Camera, frames: int, size: int) -> Tensor:
    """The first view of the camera, for all frames."""
    return pseudo.smooth(image, pseudo.Camera(camera.first, camera.first), frames, size)


ROWS = (
    Row("clips", "clips alone", None),
    Row("stills", "+ images at rest", at_rest),
    Row("pseudo", "+ pseudo-videos, smooth", pseudo.smooth),
    Row("zoompan", "+ pseudo-videos, by FFmpeg", pseudo.zoompan),
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of everything; `quick` is the smaller one."""

    steps: int = 300  # of each training
    clips: int = 300
    images: int = 700
    prompts: int = 100
    sampling: int = 12  # DDIM steps


QUICK = Budget(steps=20, clips=30, images=70, prompts=10, sampling=8)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command was asked for."""

    out: Path
    tokenizer: Path
    budget: Budget
    model: Path | None = field(default_factory=lambda: START if START.exists() else None)
    split: str = "test"
    processes: int = 1
    changes: tuple[str, ...] = ()


def ablate(options: Options) -> dict:
    """Encode, train, draw, score, write `out/ablation.md` and `.json`; returns what the JSON holds."""
    sets = changes(options)
    plans = {VidrdPlan.system: VidrdPlan}
    config.read(config.find(CONFIG), plans, sets)  # its errors come before anything is computed
    for row in ROWS:
        folder = encoded(options, row)
        log.info("row %s: training", row.name)
        run_training(CONFIG, options.out / row.key, folder, sets, options.processes)
    draw_all([job for row in ROWS for job in jobs(options, row)], options.processes)
    after = options.budget.prompts + SPLITS[options.split]
    video_judge = judging.bundled_video_judge()
    real = judging.reference(video_judge, motions=MOTIONS, after=after)
    judges = judging.bundled_judge(), video_judge
    asked = sprites.held_out(options.budget.prompts, motions=MOTIONS, first=SPLITS[options.split])
    made = {row.name: judging.sample(drawn(jobs(options, row)), asked, *judges) for row in ROWS}
    return write(options, made, real)


def changes(options: Options) -> list[str]:
    start = [f"model.start='{options.model.as_posix()}'"] if options.model else []
    return [*start, *options.changes, f"data.frames={FRAMES}", f"train.steps={options.budget.steps}", "samples.every=0"]


def encoded(options: Options, row: Row) -> Path:
    """The folder with the latents of a row."""
    return once(options.out / "latents" / row.key, lambda folder: encode(options, row, folder))


def encode(options: Options, row: Row, folder: Path) -> None:
    vae: Any = bases.load(BaseTable(), options.tokenizer).vae
    times = ",".join(map(str, sprites.frame_times(FRAMES)))
    writer = latents.ShardWriter(folder, vae, {"seed": "0", "times": times}, SHARD)
    for frames, caption in chain(clips(options.budget), shown(options.budget, row.show) if row.show else ()):
        writer.add(latents.encoded(vae, frames, SCALE), caption, frames[0])
    log.info("row %s: %d clips", row.name, writer.close())


def clips(budget: Budget) -> Iterator[tuple[Tensor, str]]:
    """The videos, (f, 3, 64, 64) in -1..1, and their captions."""
    for i in range(budget.clips):
        clip, words = sprites.clip(0, i), random.Random(f"video/{i}")
        yield sprites.render(clip, sprites.frame_times(FRAMES)) * 2 - 1, sprites.caption(clip, words)


def shown(budget: Budget, show: pseudo.Render) -> Iterator[tuple[Tensor, str]]:
    """The images under a camera, (f, 3, 64, 64) in -1..1, and their captions."""
    for i in range(budget.images):
        clip, words = sprites.clip(0, IMAGES_FROM + i), random.Random(f"image/{i}")
        (image,) = sprites.render(clip, [0.5], size=IMAGE, cue=False) * 2 - 1
        yield show(image, pseudo.camera(0, i), FRAMES, SIZE), sprites.caption(clip, words, moves=False)


def jobs(options: Options, row: Row) -> list[ClipJob]:
    return [
        ClipJob(
            model=options.out / row.key / "vidrd.safetensors",
            file=options.out / "clips" / row.key / f"{options.split}-{first:05d}.safetensors",
            alpha=0.0,
            seed=0,
            steps=options.budget.sampling,
            first=first,
            count=count,
            tokenizer=options.tokenizer,
        )
        for first, count in shares(options.split, options.budget.prompts)
    ]


def write(options: Options, made: dict[str, Sample], real: tuple[Tensor, Tensor]) -> dict:
    """The table, and the changes against the first row, in `out`."""
    base, *others = made
    start = options.model.name if options.model else "nothing"
    settings = {"split": options.split, "start": start, **asdict(options.budget)}
    scores = {name: score(sample, real) for name, sample in made.items()}
    minus = {name: compare(made[name], made[base], real) for name in others}
    text = [report.origin(command(), **settings), "", READ, "", report.markdown(scores)]
    text += ["", f"Minus {base}, in pairs:", "", report.markdown(minus)]
    told = settings | {
        key: {name: report.figures(found) for name, found in rows.items()}
        for key, rows in (("rows", scores), ("minus_first", minus))
    }
    (options.out / "ablation.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (options.out / "ablation.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    log.info("%s", "\n".join(text))
    return told
