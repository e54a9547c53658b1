"""python -m stillmotion.training ablate harivo: the effect of each part of HARIVO, on the pocket model.

The rows are those of the paper's ablation; each adds a part to the previous row. Every row is trained separately from
the same motion file, with the same budget, samples and seeds, and then samples the same prompts from the same noise.
The scores are those of `evaluation.scores.score`, with intervals, and as paired differences from the baseline.

OUT/<row>-<seed>/ holds a run of the trainer, OUT/clips/<row>-<seed>/ the clips. An interrupted ablation resumes.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...evaluation.drawing.plots import contact_sheet
from ...evaluation.drawing.views import through_sprite
from ...evaluation.judges.video_judge import FRAMES
from ...evaluation.scores import report
from ...evaluation.scores.score import Sample, compare, concatenate, score
from ...evaluation.scores.statistics import Interval
from ...model_patches.harivo import mitigating
from ..metrics import judging
from ..plans import config
from ..plans.common import BaseTable
from ..plans.errors import ConfigError
from ..plans.harivo import HarivoPlan
from .common import SPLITS, command, once, run_training, shares
from .jobs import MOTIONS, ClipJob, draw_all, read_clips

log = logging.getLogger(__name__)

OPTIONS = ("latents", "rows", "seeds", "steps", "set")  # of the verb `ablate`

CONFIG = "harivo_pocket"


@dataclass(frozen=True)
class Row:
    """A row of the table: the settings that disable parts in training, and alpha of the mitigating gradient."""

    key: str
    name: str
    without: tuple[str, ...] = ()
    alpha: float = 0.0

    @property
    def model(self) -> str:
        """The key of the row whose trained weights this row uses."""
        return "tokens" if self.alpha else self.key


REG, TRS, DC = "loss.reg=0", "loss.trs=0", "loss.dc=0"
MAPPING, TOKENS = "model.mapping=false", "model.tokens=0"
ROWS = (
    Row("baseline", "baseline", (MAPPING, TOKENS, REG, TRS, DC)),
    Row("trs", "+ L_TRS", (MAPPING, TOKENS, REG, DC)),
    Row("dc", "+ L_DC", (MAPPING, TOKENS, REG)),
    Row("mapping", "+ mapping, L_reg", (TOKENS,)),
    Row("tokens", "+ tokens"),
    Row("mg", "+ MG", alpha=mitigating.Config().alpha),
)
# Tables 1 and A2 of arXiv 2410.07763: FVD on UCF101; share of positive human votes, averaged over content, action,
# smoothness and appearance. In Table A2 the order of the first two losses is not certain.
PAPER = {
    "baseline": (1934.72, 0.2525),
    "trs": (None, 0.615),
    "dc": (1099.33, 0.68),
    "mapping": (1001.41, 0.715),
    "tokens": (922.67, 0.765),
    "mg": (787.87, 0.805),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The size of the ablation; `QUICK` is the small version."""

    steps: int = 400  # steps of each training
    clips: int = 3000  # clips to encode, if no latents are given
    prompts: int = 200
    sampling: int = 25  # DDIM steps


QUICK = Budget(steps=40, clips=250, prompts=20, sampling=10)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command."""

    out: Path
    tokenizer: Path
    budget: Budget
    config: str = CONFIG
    latents: Path | None = None
    rows: tuple[Row, ...] = ROWS
    seeds: tuple[int, ...] = (0,)
    split: str = "test"
    processes: int = 1
    changes: tuple[str, ...] = ()


def select_rows(keys: str) -> tuple[Row, ...]:
    """Rows by their keys: "all", or "baseline,trs,...". Raises ConfigError for an unknown key."""
    rows = {row.key: row for row in ROWS}
    names = list(rows) if keys == "all" else [key.strip() for key in keys.split(",")]
    for name in names:
        if name not in rows:
            raise ConfigError(f"--rows: there is no row {name!r}; the rows are {', '.join(rows)}")
    return tuple(rows[name] for name in names)


def ablate(options: Options) -> dict:
    """Train, sample, score, and write `out/ablation.md`, `.json` and `slices.png`; returns the content of the JSON."""
    plans = {HarivoPlan.system: HarivoPlan}
    config.read(config.find(options.config), plans, options.changes)  # reports its errors before anything is computed
    latents = options.latents or encoded_clips(options)
    models = {row.model for row in options.rows}
    for seed in options.seeds:
        for row in (row for row in ROWS if row.key in models):
            train(options, row, seed, latents)
    clip_jobs = [job for seed in options.seeds for row in options.rows for job in jobs(options, row, seed)]
    draw_all(clip_jobs, options.processes)
    samples = {row.key: row_sample(options, row) for row in options.rows}
    first = options.budget.prompts + SPLITS[options.split]
    real = judging.reference(judging.bundled_video_judge(), motions=MOTIONS, after=first)
    return write(options, samples, real)


def encoded_clips(options: Options) -> Path:
    """The folder with the latents of the training clips."""
    from ..tools.latents import encode

    settings: dict[str, Any] = {"size": 64, "frames": FRAMES, "fps": 0, "clips": options.budget.clips}
    return once(options.out / "latents", lambda folder: encode(BaseTable(), options.tokenizer, folder, **settings))


def train(options: Options, row: Row, seed: int, latents: Path) -> None:
    """Run the trainer, which resumes an interrupted run and refuses to resume one with other settings."""
    changes = {"train.steps": options.budget.steps, "train.seed": seed, "samples.every": 0}
    sets = [*options.changes, *(f"{name}={value}" for name, value in changes.items()), *row.without]
    log.info("row %s, seed %d: training", row.name, seed)
    run_training(options.config, options.out / f"{row.key}-{seed}", latents, sets, options.processes)


def jobs(options: Options, row: Row, seed: int) -> list[ClipJob]:
    folder = options.out / "clips" / f"{row.key}-{seed}"
    return [
        ClipJob(
            model=options.out / f"{row.model}-{seed}" / "harivo.safetensors",
            file=folder / f"{options.split}-{first:05d}.safetensors",
            alpha=row.alpha,
            seed=seed,
            steps=options.budget.sampling,
            first=first,
            count=count,
            tokenizer=options.tokenizer,
        )
        for first, count in shares(options.split, options.budget.prompts)
    ]


def row_sample(options: Options, row: Row) -> Sample:
    """The judges' readings of a row's clips, for all seeds."""
    judge = judging.bundled_judge()
    video_judge = judging.bundled_video_judge()
    parts = []
    for seed in options.seeds:
        row_jobs = jobs(options, row, seed)
        prompts = [prompt for job in row_jobs for prompt in job.prompts()]
        parts.append(judging.sample(read_clips(row_jobs), prompts, judge, video_judge))
    return concatenate(parts)


def write(options: Options, samples: dict[str, Sample], real: tuple[Tensor, Tensor]) -> dict:
    """Write the table, the paper's table and the paired differences from the first row into `out`."""
    names = {row.key: row.name for row in options.rows}
    scores = {key: score(sample, real) for key, sample in samples.items()}
    base, *others = samples
    changes = {key: compare(samples[key], samples[base], real) for key in others}
    settings = {"seeds": len(options.seeds), "split": options.split, **asdict(options.budget)}
    result = {"rows": {names[key]: report.figures(row) for key, row in scores.items()}, **settings}
    result["minus_first"] = {names[key]: report.figures(row) for key, row in changes.items()}
    text = [report.origin(command(), **settings), "", report.markdown(_by_name(names, scores))]
    text += ["", f"Paired differences from {names[base]}:", "", report.markdown(_by_name(names, changes))]
    text += ["", "The paper:", "", paper_table(options.rows)]
    (options.out / "ablation.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (options.out / "ablation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    slices(options).save(options.out / "slices.png")
    log.info("%s", "\n".join(text))
    return result


def _by_name(names: dict[str, str], rows: dict[str, dict[str, Interval]]) -> dict[str, dict[str, Interval]]:
    return {names[key]: row for key, row in rows.items()}


def paper_table(rows: tuple[Row, ...]) -> str:
    """The paper's figures for these rows. Data and model size differ, so that only the trends can be compared."""
    lines = ["| | FVD, UCF101 | share of human votes |", "| --- | --- | --- |"]
    for row in rows:
        fvd, votes = PAPER[row.key]
        lines.append(f"| {row.name} | {'' if fvd is None else fvd} | {votes} |")
    return "\n".join(lines)


def slices(options: Options) -> Image.Image:
    """x-t slices through the sprite for the first prompts: one row of images for each row of the table."""
    judge = judging.bundled_judge()
    tiles, prompts = [], jobs(options, options.rows[0], options.seeds[0])[0].prompts()
    for row in options.rows:
        clips = read_clips(jobs(options, row, options.seeds[0])[:1])
        tiles.append([through_sprite(clip, prompt.motion, judge) for clip, prompt in zip(clips, prompts, strict=True)])
    heads = ["", *(f"{p.sprite.colour} {p.sprite.shape} {p.motion}" for p in prompts)]
    title, text = "x-t slices through the sprite", "a line of pixels (across); time runs downwards"
    return contact_sheet(tiles, [row.name for row in options.rows], heads, title=title, text=text)
