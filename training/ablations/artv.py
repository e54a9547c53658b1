"""python -m stillmotion.training ablate artv: how mask, anchor, noise augmentation and guidance affect long videos.

Nothing is trained: the rows differ only in sampling, with one ART-V model of the pocket. Each video starts with the
first frame of a held-out prompt's clip and is sampled frame by frame with DDIM from the same noise. "without mask" is
the same model with m = 0: its dynamic network then has to work without the mask that it was trained with. A model that
was trained without a mask would be another file. The sweeps change one of t_test and the weights of Eq. 8 around the
paper's values (arXiv 2311.18834, Figures 4 and 8).
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from ...evaluation.drawing.plots import below, beside, line_chart
from ...evaluation.judges.video_judge import FRAMES
from ...evaluation.metrics import drift
from ...evaluation.scores import report
from ...evaluation.scores.score import Sample, compare, score
from ...evaluation.scores.statistics import Interval
from ...model_patches import checkpoint
from ...model_patches.artv.config import ArtvConfig
from ...model_patches.artv.guidance import MASKS, Weights
from ...model_patches.artv.model import ArtvModel
from ...model_patches.core.levels import alpha_bars
from ...model_patches.diffusers_host.artv import ArtvUNet
from ...model_patches.pocket import SCALE
from ...model_patches.systems import ARTV
from ..data import sprites
from ..data.latents import encode_frames
from ..metrics import judging
from ..plans.common import POCKET, BaseTable
from ..plans.errors import ConfigError
from ..sampling.autoregressive import FrameModel, Settings, roll
from ..sampling.ddim import timesteps
from ..systems import bases
from ..systems.preview import decoded
from .common import SPLITS, command, intervals, shares
from .jobs import MOTIONS, Job, draw_all

log = logging.getLogger(__name__)

OPTIONS = ("model", "length")  # of the verb `ablate`

PAPER = Settings()
PARTS = {
    "mask, anchor, t_test 200": PAPER,
    "without mask": replace(PAPER, mask=False),
    "without anchor": replace(PAPER, anchor=False),
    "a mask for each condition": replace(PAPER, masks=MASKS[1]),
}
SWEEPS = {
    "t_test": {level: replace(PAPER, level=level) for level in (0, 100, 200, 300, 400)},
    "w_ref": {w: replace(PAPER, weights=Weights(reference=w)) for w in (0.0, 0.25, 1.0)},
    "w_anc": {w: replace(PAPER, weights=Weights(anchor=w)) for w in (0.0, 0.25, 1.0)},
    "w_txt": {w: replace(PAPER, weights=Weights(text=w)) for w in (0.0, 3.0, 6.5)},
}
ROWS = list(dict.fromkeys([*PARTS.values(), *(row for sweep in SWEEPS.values() for row in sweep.values())]))
DRIFTS = {"colour_drift": "colour drift", "class_drift": "class drift"}
LATE = {f"late_{name}": f"late {name}" for name in ("colour", "shape", "background")}
COLUMNS = {**DRIFTS, **LATE, **{k: v for k, v in report.COLUMNS.items() if k != "difference"}}
READ = (
    f"Drifts compare the last {FRAMES} frames with frame 0: colour drift, the mean and deviation of each channel, "
    "pixels in 0..1; class drift, the judge's probabilities, 0..1. late: the judge on these last frames. The other "
    f"columns are for the first {FRAMES} frames. The paper reports (Figure 8) a large loss and drift without the mask, "
    "the best FVD at t_test 200 and a worse FVD without the anchor, and (Figure 4) that the mask's mean rises during "
    "sampling."
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    prompts: int = 20
    sampling: int = 12  # DDIM steps per frame
    length: int = 64  # frames of a video


QUICK = Budget(prompts=3, sampling=6, length=2 * FRAMES)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command."""

    out: Path
    tokenizer: Path
    budget: Budget
    model: Path = POCKET / "artv.safetensors"
    split: str = "test"
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class RollJob(Job):
    """A video of each prompt for each of `ROWS`: clips (rows, prompts, length, 3, 64, 64).

    masks: (rows, prompts, 2, steps), the mean and the contrast of the masks at each step.
    """

    length: int

    def settings(self) -> list[object]:
        return [self.length, [asdict(row) for row in ROWS], *super().settings()]

    def tensors(self) -> dict[str, Tensor]:
        model, rows = pocket_artv(self.model, self.tokenizer), []
        for row in ROWS:
            rows.append(self._row(model, replace(row, steps=self.steps)))
            log.info("%s: %d of %d rows", self.file.name, len(rows), len(ROWS))
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, model: "PocketArtv", settings: Settings) -> dict[str, Tensor]:
        prompts = self.prompts()
        masks: list[Tensor] = []

        def record(frame: int, _t: int, m: Tensor) -> None:
            if frame:
                masks.append(torch.stack([m.mean((1, 2, 3)), m.std((1, 2, 3), correction=0)], dim=1))  # (n, 2)

        first = model.first_frames(prompts)
        video = roll(
            model.frame_model,
            model.context([sprites.caption(prompt) for prompt in prompts]),
            model.context([""] * len(prompts)),
            shape=tuple(first.shape),
            frames=self.length,
            settings=settings,
            first=first,
            numbers=[self.first + i for i in range(len(prompts))],
            seed=self.seed,
            on_mask=record,
        )
        means = torch.stack(masks).unflatten(0, (self.length - 1, self.steps)).mean(0)  # (steps, n, 2)
        return {"clips": model.pictures(video), "masks": means.permute(1, 2, 0).contiguous()}


class PocketArtv:
    """The pocket model with an ART-V model."""

    def __init__(self, path: Path, tokenizer: Path) -> None:
        self.base = bases.load(BaseTable(), tokenizer)
        file = checkpoint.load(path, expect=ARTV)
        model = ArtvModel(ArtvConfig.from_dict(file.config)).eval().requires_grad_(False)
        model.load_state_dict({k: v.float() for k, v in file.weights.items()})
        self.frame_model = FrameModel(ArtvUNet(self.base.unet, model), alpha_bars().float())

    def context(self, texts: list[str]) -> Tensor:
        return self.base.text(self.base.ids(texts)).last_hidden_state

    def first_frames(self, prompts: Sequence[sprites.Clip]) -> Tensor:
        """The rendered first frame of each prompt's clip, as a latent: (n, 4, h, w)."""
        pictures = torch.cat([sprites.render(prompt, sprites.frame_times(FRAMES)[:1]) for prompt in prompts])
        return encode_frames(self.base.vae, pictures * 2 - 1, SCALE).float()

    def pictures(self, latents: Tensor) -> Tensor:
        """Decoded videos: (n, f, 4, h, w) -> bytes (n, f, 3, 64, 64)."""
        return (decoded(self.base.vae, latents, latents.shape[1]) * 255).round().byte()


pocket_artv = lru_cache(maxsize=1)(PocketArtv)


@dataclass(frozen=True)
class RowResult:
    """The measurements of one row."""

    early: Sample  # the first FRAMES of each video
    late: Sample  # the last FRAMES
    late_drifts: Tensor  # (n, 2), mean drifts of the last FRAMES
    drifts: dict[str, list[float]]  # name -> drift of each frame, as a mean over the videos
    masks: list[list[float]]  # mean and contrast at each step

    def scores(self, real: tuple[Tensor, Tensor]) -> dict[str, Interval]:
        return intervals(DRIFTS, self.late_drifts.tolist()) | score(self.early, real) | _late(score(self.late))

    def minus(self, base: "RowResult", real: tuple[Tensor, Tensor]) -> dict[str, Interval]:
        """Paired differences, with the same prompt and noise in each pair."""
        drifts = intervals(DRIFTS, (self.late_drifts - base.late_drifts).tolist())
        return drifts | compare(self.early, base.early, real) | _late(compare(self.late, base.late))


def _late(scores: dict[str, Interval]) -> dict[str, Interval]:
    return {name: scores[name.removeprefix("late_")] for name in LATE}


def ablate(options: Options) -> dict:
    """Sample, score, and write `out/ablation.md`, `.json` and `curves.png`; returns the content of the JSON."""
    if not options.model.is_file():
        raise ConfigError(f"there is no model {options.model}; give an ART-V file of the pocket model (--model FILE)")
    if options.budget.length < FRAMES:
        raise ConfigError(f"--length {options.budget.length}: the judges need {FRAMES} frames; give at least {FRAMES}")
    roll_jobs = jobs(options)
    draw_all(roll_jobs, options.processes)
    after = options.budget.prompts + SPLITS[options.split]
    video_judge = judging.bundled_video_judge()
    real = judging.reference(video_judge, motions=MOTIONS, after=after)
    judge = judging.bundled_judge()
    prompts = [prompt for job in roll_jobs for prompt in job.prompts()]

    def result(row: int) -> RowResult:
        videos, masks = row_of(roll_jobs, row)
        tracks = [drift.track(judge, video) for video in videos]
        early = judging.sample((video[:FRAMES] for video in videos), prompts, judge, video_judge)
        late = judging.sample((video[-FRAMES:] for video in videos), prompts, judge)
        late_drifts = torch.tensor([[fmean(track[name][-FRAMES:]) for name in DRIFTS] for track in tracks])
        drifts = {name: torch.tensor([track[name] for track in tracks]).mean(0).tolist() for name in DRIFTS}
        return RowResult(early, late, late_drifts, drifts, masks.mean(0).tolist())

    return write(options, {settings: result(row) for row, settings in enumerate(ROWS)}, real)


def jobs(options: Options) -> list[RollJob]:
    budget = options.budget
    return [
        RollJob(
            model=options.model,
            file=options.out / "videos" / f"{options.split}-{first:05d}.safetensors",
            seed=0,
            steps=budget.sampling,
            first=first,
            count=count,
            tokenizer=options.tokenizer,
            length=budget.length,
        )
        for first, count in shares(options.split, budget.prompts)
    ]


def row_of(row_jobs: Sequence[Job], row: int) -> tuple[list[Tensor], Tensor]:
    """The videos (length, 3, 64, 64) in 0..1 of a row, in the order of the prompts, and its masks (n, 2, steps)."""
    videos, masks = [], []
    for job in row_jobs:
        with safe_open(job.file, "pt") as file:
            videos += list(file.get_slice("clips")[row].float() / 255)
            masks.append(file.get_slice("masks")[row])
    return videos, torch.cat(masks)


def write(options: Options, results: dict[Settings, RowResult], real: tuple[Tensor, Tensor]) -> dict:
    """Write the tables and curves into `out`."""
    settings = {"split": options.split, "model": options.model.name, **asdict(options.budget)}
    tables = {"parts": PARTS} | {
        name: {f"{name} {value:g}": row for value, row in sweep.items()} for name, sweep in SWEEPS.items()
    }
    scores = {row: result.scores(real) for row, result in results.items()}
    changes = {row: result.minus(results[PAPER], real) for row, result in results.items() if row != PAPER}
    text = [report.origin(command(), **settings), "", READ]
    data: dict[str, object] = dict(settings)
    for table, rows in tables.items():
        text += ["", report.markdown({name: scores[row] for name, row in rows.items()}, COLUMNS)]
        data[table] = {
            name: report.figures(scores[row]) | {"drifts": results[row].drifts, "masks": results[row].masks}
            for name, row in rows.items()
        }
    others = {name: changes[row] for rows in tables.values() for name, row in rows.items() if row != PAPER}
    text += ["", f"Paired differences from {next(iter(PARTS))}:", "", report.markdown(others, COLUMNS)]
    data["minus_first"] = {name: report.figures(row) for name, row in others.items()}
    (options.out / "ablation.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (options.out / "ablation.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    curves(results, scores, options.budget.sampling).save(options.out / "curves.png")
    log.info("%s", "\n".join(text))
    return data


def curves(results: dict[Settings, RowResult], scores: dict[Settings, dict[str, Interval]], steps: int) -> Image.Image:
    """Charts: drifts over the frames, by part and by t_test; the late drift over t_test; the mask over the steps."""
    levels = {f"t_test {level:g}": row for level, row in SWEEPS["t_test"].items()}
    rows = []
    for rows_of_chart, subject in ((PARTS, "parts"), (levels, "t_test")):
        pair = []
        for name, title in DRIFTS.items():
            lines = {
                key: (list(map(float, range(len(results[row].drifts[name])))), results[row].drifts[name])
                for key, row in rows_of_chart.items()
            }
            pair.append(line_chart(lines, title=f"{title.capitalize()}, {subject}", x="frame", y=title, zero=True))
        rows.append(beside(pair))
    xs = [float(level) for level in SWEEPS["t_test"]]
    late = {title: (xs, [scores[row][name].value for row in levels.values()]) for name, title in DRIFTS.items()}
    t = [float(t) for t in timesteps(len(alpha_bars()), steps)]
    mean, contrast = results[PAPER].masks
    mask = {"mean": (t, mean), "contrast": (t, contrast)}
    rows.append(
        beside(
            [
                line_chart(late, title="Late drift over t_test", x="t_test", y="drift", zero=True),
                line_chart(mask, title="Mask over the timestep (sampling goes to the left)", x="t", y="m", zero=True),
            ]
        )
    )
    return below(rows)
