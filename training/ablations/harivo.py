"""python -m stillmotion.training ablate harivo: what each part of HARIVO does, on the pocket model.

The rows of the paper's ablation, each with what the rows before it have: every one is trained anew from the same motion
file, with the same budget, samples and seeds, then draws the same prompts from the same noise. Scores are those of
`evaluation.scores.score`, with intervals, beside the row before and beside the baseline in pairs.

OUT/<row>-<seed>/ holds a run of the trainer, OUT/clips/<row>-<seed>/ the clips. A stopped ablation goes on where it
was.
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
from ...evaluation.scores.score import Sample, compare, joined, score
from ...evaluation.scores.statistics import Interval
from ...model_patches.harivo import mitigating
from ..metrics import judging
from ..plans import config
from ..plans.common import BaseTable
from ..plans.errors import ConfigError
from ..plans.harivo import HarivoPlan
from .common import SPLITS, command, once, run_training, shares
from .jobs import MOTIONS, ClipJob, draw_all, drawn

log = logging.getLogger(__name__)

OPTIONS = ("latents", "rows", "seeds", "steps", "set")  # of the verb `ablate`

CONFIG = "harivo_pocket"


@dataclass(frozen=True)
class Row:
    """A line of the table: what is switched off in training, and the scale of the mitigating gradient in sampling."""

    key: str
    name: str
    without: tuple[str, ...] = ()
    alpha: float = 0.0

    @property
    def model(self) -> str:
        """The key of the row whose weights are used."""
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
# Table 1 and A2 of arXiv 2410.07763: FVD on UCF101; share of yes of people asked for content, action, smoothness and
# looks, averaged. The order of the first two losses in the second is not certain.
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
    """How much of everything; `quick` is the smaller one."""

    steps: int = 400  # of each training
    clips: int = 3000  # encoded for it, where no latents are given
    prompts: int = 200
    sampling: int = 25  # DDIM steps


QUICK = Budget(steps=40, clips=250, prompts=20, sampling=10)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command was asked for."""

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


def chosen(keys: str) -> tuple[Row, ...]:
    """Rows by their keys, "all" or "baseline,trs,...". ConfigError names a key that is none."""
    known = {row.key: row for row in ROWS}
    names = list(known) if keys == "all" else [key.strip() for key in keys.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"--rows: there is no row {name!r}; the rows are {', '.join(known)}")
    return tuple(known[name] for name in names)


def ablate(options: Options) -> dict:
    """Train, draw, score, write `out/ablation.md`, `.json` and `slices.png`; returns what the JSON holds."""
    plans = {HarivoPlan.system: HarivoPlan}
    config.read(config.find(options.config), plans, options.changes)  # its errors come before anything is computed
    latents = options.latents or encoded(options)
    models = {row.model for row in options.rows}
    for seed in options.seeds:
        for row in (row for row in ROWS if row.key in models):
            train(options, row, seed, latents)
    wanted = [job for seed in options.seeds for row in options.rows for job in jobs(options, row, seed)]
    draw_all(wanted, options.processes)
    made = {row.key: sampled(options, row) for row in options.rows}
    first = options.budget.prompts + SPLITS[options.split]
    real = judging.reference(judging.bundled_video_judge(), motions=MOTIONS, after=first)
    return write(options, made, real)


def encoded(options: Options) -> Path:
    from ..tools.latents import encode

    settings: dict[str, Any] = {"size": 64, "frames": FRAMES, "fps": 0, "clips": options.budget.clips}
    return once(options.out / "latents", lambda folder: encode(BaseTable(), options.tokenizer, folder, **settings))


def train(options: Options, row: Row, seed: int, latents: Path) -> None:
    """A run of the trainer, which resumes one that was stopped and refuses one of other settings."""
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


def sampled(options: Options, row: Row) -> Sample:
    """What the judges see in a row's clips of all seeds."""
    judge = judging.bundled_judge()
    video_judge = judging.bundled_video_judge()
    parts = []
    for seed in options.seeds:
        found = jobs(options, row, seed)
        prompts = [prompt for job in found for prompt in job.prompts()]
        parts.append(judging.sample(drawn(found), prompts, judge, video_judge))
    return joined(parts)


def write(options: Options, made: dict[str, Sample], real: tuple[Tensor, Tensor]) -> dict:
    """The table, beside the paper's, and the changes against the first row, in `out`."""
    names = {row.key: row.name for row in options.rows}
    scores = {key: score(sample, real) for key, sample in made.items()}
    base, *others = made
    changes = {key: compare(made[key], made[base], real) for key in others}
    settings = {"seeds": len(options.seeds), "split": options.split, **asdict(options.budget)}
    told = {"rows": {names[key]: report.figures(found) for key, found in scores.items()}, **settings}
    told["minus_first"] = {names[key]: report.figures(found) for key, found in changes.items()}
    text = [report.origin(command(), **settings), "", report.markdown(_named(names, scores))]
    text += ["", f"Minus {names[base]}, in pairs:", "", report.markdown(_named(names, changes))]
    text += ["", "The paper:", "", paper_table(options.rows)]
    (options.out / "ablation.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (options.out / "ablation.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    slices(options).save(options.out / "slices.png")
    log.info("%s", "\n".join(text))
    return told


def _named(names: dict[str, str], rows: dict[str, dict[str, Interval]]) -> dict[str, dict[str, Interval]]:
    return {names[key]: found for key, found in rows.items()}


def paper_table(rows: tuple[Row, ...]) -> str:
    """What the paper prints for these rows, on other data, of another size: directions can be compared, figures not."""
    lines = ["| | FVD, UCF101 | yes of people |", "| --- | --- | --- |"]
    for row in rows:
        fvd, yes = PAPER[row.key]
        lines.append(f"| {row.name} | {'' if fvd is None else fvd} | {yes} |")
    return "\n".join(lines)


def slices(options: Options) -> Image.Image:
    """A line of pixels over time, through the sprite, for the first prompts: a row of pictures for each row."""
    judge = judging.bundled_judge()
    tiles, prompts = [], jobs(options, options.rows[0], options.seeds[0])[0].prompts()
    for row in options.rows:
        clips = drawn(jobs(options, row, options.seeds[0])[:1])
        tiles.append([through_sprite(clip, prompt.motion, judge) for clip, prompt in zip(clips, prompts, strict=True)])
    heads = ["", *(f"{p.sprite.colour} {p.sprite.shape} {p.motion}" for p in prompts)]
    title, text = "x-t slices through the sprite", "a line of pixels (across); time runs downwards"
    return contact_sheet(tiles, [row.name for row in options.rows], heads, title=title, text=text)
