"""python -m stillmotion.training ablate pseudo: what a video model learns from images, still or with a moving camera.

VidRD's pseudo-videos (arXiv 2309.03549, section 4.2) are captioned images over which a camera zooms and pans; they are
used like videos. Here the videos are a few drawn clips, and the images are frames of other clips, whose captions do not
mention the motion. Each row trains VidRD from the same file, with the same budget and seed, on the same clips; the rows
differ only in how the images are used. Then each row samples the same prompts from the same noise.
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
from .jobs import MOTIONS, ClipJob, draw_all, read_clips

log = logging.getLogger(__name__)

OPTIONS = ("model", "steps", "images", "set")  # of the verb `ablate`

CONFIG = "vidrd_pocket"
SIZE = 64
IMAGE = 2 * SIZE  # side of an image in pixels; a camera shows a part of it
IMAGES_FROM = 100_000  # the images are one frame of each drawn clip from this number on
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
    """How a camera turns an image into a clip; None: the images are not used."""


def at_rest(image: Tensor, camera: pseudo.Camera, frames: int, size: int) -> Tensor:
    """A camera that stays at its first view in all frames."""
    return pseudo.smooth(image, pseudo.Camera(camera.first, camera.first), frames, size)


ROWS = (
    Row("clips", "clips alone", None),
    Row("stills", "+ images at rest", at_rest),
    Row("pseudo", "+ pseudo-videos, smooth", pseudo.smooth),
    Row("zoompan", "+ pseudo-videos, by FFmpeg", pseudo.zoompan),
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The size of the ablation; `QUICK` is the small version."""

    steps: int = 300  # steps of each training
    clips: int = 300
    images: int = 700
    prompts: int = 100
    sampling: int = 12  # DDIM steps


QUICK = Budget(steps=20, clips=30, images=70, prompts=10, sampling=8)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command."""

    out: Path
    tokenizer: Path
    budget: Budget
    model: Path | None = field(default_factory=lambda: START if START.exists() else None)
    split: str = "test"
    processes: int = 1
    changes: tuple[str, ...] = ()


def ablate(options: Options) -> dict:
    """Encode, train, sample, score, and write `out/ablation.md` and `.json`; returns the content of the JSON."""
    sets = changes(options)
    plans = {VidrdPlan.system: VidrdPlan}
    config.read(config.find(CONFIG), plans, sets)  # reports its errors before anything is computed
    for row in ROWS:
        folder = encoded_clips(options, row)
        log.info("row %s: training", row.name)
        run_training(CONFIG, options.out / row.key, folder, sets, options.processes)
    draw_all([job for row in ROWS for job in jobs(options, row)], options.processes)
    after = options.budget.prompts + SPLITS[options.split]
    video_judge = judging.bundled_video_judge()
    real = judging.reference(video_judge, motions=MOTIONS, after=after)
    judges = judging.bundled_judge(), video_judge
    prompts = sprites.held_out(options.budget.prompts, motions=MOTIONS, first=SPLITS[options.split])
    samples = {row.name: judging.sample(read_clips(jobs(options, row)), prompts, *judges) for row in ROWS}
    return write(options, samples, real)


def changes(options: Options) -> list[str]:
    start = [f"model.start='{options.model.as_posix()}'"] if options.model else []
    return [*start, *options.changes, f"data.frames={FRAMES}", f"train.steps={options.budget.steps}", "samples.every=0"]


def encoded_clips(options: Options, row: Row) -> Path:
    """The folder with the latents of a row."""
    return once(options.out / "latents" / row.key, lambda folder: encode(options, row, folder))


def encode(options: Options, row: Row, folder: Path) -> None:
    vae: Any = bases.load(BaseTable(), options.tokenizer).vae
    times = ",".join(map(str, sprites.frame_times(FRAMES)))
    writer = latents.ShardWriter(folder, vae, {"seed": "0", "times": times}, SHARD)
    for frames, caption in chain(clips(options.budget), pseudo_videos(options.budget, row.show) if row.show else ()):
        writer.add(latents.encode_frames(vae, frames, SCALE), caption, frames[0])
    log.info("row %s: %d clips", row.name, writer.close())


def clips(budget: Budget) -> Iterator[tuple[Tensor, str]]:
    """The videos, (f, 3, 64, 64) in -1..1, and their captions."""
    for i in range(budget.clips):
        clip, rng = sprites.clip(0, i), random.Random(f"video/{i}")
        yield sprites.render(clip, sprites.frame_times(FRAMES)) * 2 - 1, sprites.caption(clip, rng)


def pseudo_videos(budget: Budget, show: pseudo.Render) -> Iterator[tuple[Tensor, str]]:
    """The clips that a camera makes from the images, (f, 3, 64, 64) in -1..1, and their captions."""
    for i in range(budget.images):
        clip, rng = sprites.clip(0, IMAGES_FROM + i), random.Random(f"image/{i}")
        (image,) = sprites.render(clip, [0.5], size=IMAGE, cue=False) * 2 - 1
        yield show(image, pseudo.camera(0, i), FRAMES, SIZE), sprites.caption(clip, rng, moves=False)


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


def write(options: Options, samples: dict[str, Sample], real: tuple[Tensor, Tensor]) -> dict:
    """Write the table and the paired differences from the first row into `out`."""
    base, *others = samples
    start = options.model.name if options.model else "nothing"
    settings = {"split": options.split, "start": start, **asdict(options.budget)}
    scores = {name: score(sample, real) for name, sample in samples.items()}
    differences = {name: compare(samples[name], samples[base], real) for name in others}
    text = [report.origin(command(), **settings), "", READ, "", report.markdown(scores)]
    text += ["", f"Paired differences from {base}:", "", report.markdown(differences)]
    result = settings | {
        key: {name: report.figures(row) for name, row in rows.items()}
        for key, rows in (("rows", scores), ("minus_first", differences))
    }
    (options.out / "ablation.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (options.out / "ablation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    log.info("%s", "\n".join(text))
    return result
