"""python -m stillmotion.training ablate dreamvideo: the effect of branch, image and both scales, on the pocket model.

Nothing is trained: the rows differ only in sampling, with one DreamVideo file. The image of a clip is the rendered
first frame of the clip that its held-out prompt describes. "without branch" is the same U-Net and motion model, without
an image; "image to image" is the same model, too, and starts from the noised image in every frame. The sweeps change
one scale of Eq. 5, or both. A stage is a clip whose image is the last frame of the previous clip (arXiv 2312.03018,
section 4.4); the motion in its prompt reverses at every stage.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from ...evaluation.drawing.plots import beside, contact_sheet, line_chart
from ...evaluation.drawing.views import as_picture
from ...evaluation.judges.judge import Judge
from ...evaluation.judges.video_judge import FRAMES, VideoJudge
from ...evaluation.metrics import drift
from ...evaluation.metrics.first_frame import first_frame_ssim
from ...evaluation.scores import report
from ...evaluation.scores.score import Sample, compare, score
from ...evaluation.scores.statistics import Interval
from ...model_patches import checkpoint
from ...model_patches.dreamvideo.config import DreamVideoConfig
from ...model_patches.dreamvideo.guidance import DEFAULT_SCALE
from ...model_patches.layouts import CheckpointError
from ...model_patches.systems import DREAMVIDEO
from ..data import sprites
from ..metrics import judging
from ..plans.common import POCKET
from ..plans.errors import ConfigError
from .common import SPLITS, command, intervals, shares
from .image_jobs import ImageJob, Row, first_frame, stage_prompt
from .jobs import GUIDANCE, MOTIONS, draw_all

log = logging.getLogger(__name__)

OPTIONS = ("model", "motion", "length", "rows")  # of the verb `ablate`

OURS = Row()
WITHOUT = Row(branch=False, text=GUIDANCE)
TABLES: dict[str, dict[str, Row]] = {
    "parts": {
        "branch": OURS,
        "without branch": WITHOUT,
        **{f"image to image, {share:g}": replace(WITHOUT, noised=share) for share in (0.5, 0.75, 0.9)},
    },
    "modes": {
        "text and image": OURS,
        "text alone": Row(shown=False, text=GUIDANCE),
        "image alone": Row(caption=False),
        "image alone, image under the noise": Row(caption=False, noised=1.0),
        "image alone, image under the noise, s_i 2": Row(caption=False, noised=1.0, image=2.0),
    },
    "s_i": {f"s_i {scale:g}": Row(image=scale) for scale in (1.0, 2.0, 3.0, 5.0, 10.0)},
    "s_t": {f"s_t {scale:g}": Row(text=scale) for scale in (1.0, 3.0, 7.5, 12.0)},
    "both": {f"both {scale:g}": Row(text=scale, image=scale) for scale in (1.0, 2.0, 3.0, 5.0, 7.5)},
}
PAIRED = ("parts", "modes")  # the tables whose first row, which is the same in both, is compared with the others
STAGES = "stages"
FIRST = {"fff_ssim": "FFF-SSIM", "pocket_fff": "pocket FFF", "contrast": "contrast"}
DRIFTS = {"colour_drift": "colour drift", "class_drift": "class drift"}
COLUMNS = {**FIRST, **DRIFTS, **report.COLUMNS}
OVER = {  # scores that are drawn as curves over a scale
    "s_i": ("fff_ssim", "contrast"),
    "s_t": ("fff_ssim", "direction"),
    "both": ("fff_ssim", "direction"),
}
SHOWN = 8  # first frames on the sheet
READ = (
    "Comparison of the first frame with the image: FFF-SSIM; pocket FFF, the cosine similarity of the judge's "
    "features; contrast, the standard deviation of the pixels of the first frame minus that of the image. Drifts "
    "compare the last frame with the image: colour drift, the mean and deviation of each channel, pixels in 0..1; "
    "class drift, the judge's probabilities, 0..1. Image to image starts from the image, noised to this share of the "
    "schedule; the difference of adjacent frames shows how much the clip still moves. The paper reports, on UCF-101 "
    "and MSR-VTT: FFF-SSIM 0.37 and 0.36, FVD of text alone 463.76 and 250.80, of text and image 214.52 and 167.80 "
    "(Tables 1 and 2); brightness and contrast grow with s_i, and are too strong from 15 on (figure). It gives neither "
    f"s_t nor s_i: here both are {DEFAULT_SCALE:g}; rows without an image use the pocket's guidance, {GUIDANCE:g}."
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    prompts: int = 40
    sampling: int = 25  # DDIM steps
    length: int = 4  # stages


QUICK = Budget(prompts=5, sampling=8, length=2)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command."""

    out: Path
    tokenizer: Path
    budget: Budget
    model: Path = POCKET / "dreamvideo.safetensors"
    motion: Path | None = None  # the motion model for a file without one; None: the bundled one
    rows: tuple[str, ...] = (*TABLES, STAGES)
    split: str = "test"
    processes: int = 1


@dataclass(frozen=True)
class RowResult:
    """The measurements of one row."""

    scores: dict[str, Interval]
    sample: Sample
    values: Tensor  # (n, 5), the scores named by `FIRST` and `DRIFTS`, for each prompt
    frames: Tensor  # (SHOWN or less, 3, 64, 64), first frames
    drifts: dict[str, list[float]]  # name -> drift of each frame from the image, as a mean over the prompts

    def minus(self, other: "RowResult", real: tuple[Tensor, Tensor]) -> dict[str, Interval]:
        """Paired differences, with the same prompt, image and noise in each pair."""
        differences = intervals(FIRST | DRIFTS, (self.values - other.values).tolist())
        return differences | compare(self.sample, other.sample, real)


def select_rows(keys: str) -> tuple[str, ...]:
    """Tables by their names: "all", or "parts,stages,...". Raises ConfigError for an unknown name."""
    tables = (*TABLES, STAGES)
    names = tables if keys == "all" else tuple(key.strip() for key in keys.split(","))
    for name in names:
        if name not in tables:
            raise ConfigError(f"--rows: there is no table {name!r}; the tables are {', '.join(tables)}")
    return names


def ablate(options: Options) -> dict:
    """Sample, score, and write `out/ablation.md`, `.json`, `curves.png` and `first_frames.png`.

    Returns the content of the JSON.
    """
    image_jobs = jobs(options)
    draw_all(image_jobs, options.processes)
    prompts = [prompt for job in image_jobs for prompt in job.prompts()]
    images = torch.cat([first_frame(prompt) for prompt in prompts])
    judges = Judges.load(options.budget.prompts + SPLITS[options.split])
    results = {
        row: judges.measure(clips_of(image_jobs, "clips", i), images, prompts)
        for i, row in enumerate(image_jobs[0].rows)
    }
    tables = {name: {key: results[row] for key, row in TABLES[name].items()} for name in options.rows if name != STAGES}
    if STAGES in options.rows:
        tables[STAGES] = stages_of(image_jobs, judges, images, prompts, options.budget.length)
    return write(options, tables, changes(tables, judges.real), images)


def jobs(options: Options) -> list[ImageJob]:
    budget, rows = options.budget, [row for name in options.rows for row in TABLES.get(name, {}).values()]
    return [
        ImageJob(
            model=options.model,
            motion=motion_file(options),
            file=options.out / "clips" / f"{options.split}-{first:05d}.safetensors",
            rows=tuple(dict.fromkeys(rows)),
            staged=OURS,
            length=budget.length if STAGES in options.rows else 0,
            seed=0,
            steps=budget.sampling,
            first=first,
            count=count,
            tokenizer=options.tokenizer,
        )
        for first, count in shares(options.split, budget.prompts)
    ]


def motion_file(options: Options) -> Path | None:
    """The motion model for a DreamVideo file without one, else None. Raises ConfigError for an unusable file."""
    try:
        return _motion(options.model, options.motion)
    except CheckpointError as error:
        raise ConfigError(f"{error} (--model FILE: a DreamVideo file of the pocket model)") from error


@lru_cache(maxsize=1)
def _motion(model: Path, motion: Path | None) -> Path | None:
    has_motion = DreamVideoConfig.from_dict(checkpoint.load(model, expect=DREAMVIDEO).config).motion
    if has_motion and motion:
        raise ConfigError(f"--motion {motion}: {model.name} has its own motion model; omit --motion")
    return None if has_motion else motion or POCKET / "motion.safetensors"


@dataclass(frozen=True)
class Judges:
    """The judges, and the features of the real clips for comparison."""

    judge: Judge
    video: VideoJudge
    real: tuple[Tensor, Tensor]

    @staticmethod
    def load(after: int) -> "Judges":
        """Load the bundled judges. after: number of the held-out prompt at which the real clips start."""
        video = judging.bundled_video_judge()
        real = judging.reference(video, motions=MOTIONS, after=after)
        return Judges(judging.bundled_judge(), video, real)

    def measure(
        self, clips: Sequence[Tensor], images: Tensor, prompts: Sequence[sprites.Clip], origins: Tensor | None = None
    ) -> RowResult:
        """The measurements of a row.

        clips: (f, 3, 64, 64) in 0..1 each; images: (n, 3, 64, 64), the conditions of the clips; origins: like images,
        the images from which the drift is measured (default: `images`).
        """
        first_frames = torch.stack([clip[0] for clip in clips])
        origins = images if origins is None else origins
        tracks = [
            drift.track(self.judge, torch.cat([image[None], clip])) for image, clip in zip(origins, clips, strict=True)
        ]
        last_drifts = torch.tensor([[track[name][-1] for name in DRIFTS] for track in tracks])
        values = torch.cat([self.first_frame_scores(first_frames, images), last_drifts], dim=1)
        sample = judging.sample(clips, prompts, self.judge, self.video)
        scores = intervals(FIRST | DRIFTS, values.tolist()) | score(sample, self.real)
        drifts = {name: torch.tensor([track[name][1:] for track in tracks]).mean(0).tolist() for name in DRIFTS}
        return RowResult(scores, sample, values, first_frames[:SHOWN], drifts)

    @torch.no_grad()
    def first_frame_scores(self, first_frames: Tensor, images: Tensor) -> Tensor:
        """The scores named by `FIRST` for each pair of first frame and image, (n, 3)."""
        similarity = F.cosine_similarity(self.judge.features(first_frames), self.judge.features(images))
        contrast = first_frames.flatten(1).std(1, correction=0) - images.flatten(1).std(1, correction=0)
        return torch.stack([first_frame_ssim(first_frames, images), similarity, contrast], dim=1)


def changes(
    tables: Mapping[str, Mapping[str, RowResult]], real: tuple[Tensor, Tensor]
) -> dict[str, dict[str, Interval]]:
    """Paired differences: the first row of the tables in `PAIRED` minus each other row."""
    differences = {}
    for (_, first), *others in (tables[name].items() for name in PAIRED if name in tables):
        differences |= {f"minus {name}": first.minus(other, real) for name, other in others}
    return differences


def stages_of(
    image_jobs: Sequence[ImageJob], judges: Judges, images: Tensor, prompts: Sequence[sprites.Clip], length: int
) -> dict[str, RowResult]:
    """Each stage, compared with its own image and prompt; its drift is measured from the first image."""
    videos, results, stage_images = clips_of(image_jobs, "stages"), {}, images
    for stage in range(length):
        clips = [video[stage * FRAMES : (stage + 1) * FRAMES] for video in videos]
        stage_prompts = [stage_prompt(prompt, stage) for prompt in prompts]
        results[f"stage {stage + 1}"] = judges.measure(clips, stage_images, stage_prompts, images)
        stage_images = torch.stack([clip[-1] for clip in clips])
    return results


def clips_of(image_jobs: Sequence[ImageJob], name: str, row: int | None = None) -> list[Tensor]:
    """Clips (f, 3, 64, 64) in 0..1, in the order of the prompts."""
    clips: list[Tensor] = []
    for job in image_jobs:
        with safe_open(job.file, "pt") as file:
            data = file.get_slice(name)
            clips += list((data[:] if row is None else data[row]).float() / 255)
    return clips


def write(
    options: Options,
    tables: Mapping[str, Mapping[str, RowResult]],
    gains: Mapping[str, Mapping[str, Interval]],
    images: Tensor,
) -> dict:
    """Write the tables and images into `out`."""
    settings = {"split": options.split, "model": options.model.name, **asdict(options.budget)}
    text = [report.origin(command(), **settings), "", READ]
    data: dict[str, object] = {}
    for name, rows in tables.items():
        text += ["", report.markdown({key: row.scores for key, row in rows.items()}, COLUMNS)]
        data[name] = {key: report.figures(row.scores) | {"drifts": row.drifts} for key, row in rows.items()}
    if gains:
        text += ["", "Paired differences: the row with branch, text and image minus the others:", ""]
        text += [report.markdown(gains, COLUMNS)]
        data["changes"] = {name: report.figures(row) for name, row in gains.items()}
    if "parts" in tables:
        sheet(tables["parts"], images).save(options.out / "first_frames.png")
    (options.out / "ablation.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (options.out / "ablation.json").write_text(json.dumps(settings | data, indent=1) + "\n", encoding="utf-8")
    if charts := curves(tables):
        beside(charts).save(options.out / "curves.png")
    log.info("%s", "\n".join(text))
    return settings | data


def sheet(rows: Mapping[str, RowResult], images: Tensor) -> Image.Image:
    """A sheet of the images, and below them the first frames that each row made from them."""
    tiles = [[as_picture(image) for image in images[:SHOWN]]]
    tiles += [[as_picture(frame) for frame in row.frames] for row in rows.values()]
    heads = [""] * (1 + len(tiles[0]))
    return contact_sheet(tiles, ["image", *rows], heads, title="First frames", text="held-out images and prompts")


def curves(tables: Mapping[str, Mapping[str, RowResult]]) -> list[Image.Image]:
    """Charts of the tables that exist: first-frame fidelity and contrast or direction over the scales, and the drift
    over the frames of all stages."""
    charts = []
    for name, scores in OVER.items():
        if name in tables:
            xs = [float(key.split()[1]) for key in tables[name]]
            lines = {COLUMNS[s]: (xs, [row.scores[s].value for row in tables[name].values()]) for s in scores}
            charts.append(line_chart(lines, title=f"Over {name}", x=name, y="score", zero=True))
    if STAGES in tables:
        tracks = {
            title: [v for row in tables[STAGES].values() for v in row.drifts[key]] for key, title in DRIFTS.items()
        }
        lines = {title: (list(map(float, range(len(track)))), track) for title, track in tracks.items()}
        charts.append(line_chart(lines, title="Drift over the stages", x="frame", y="drift", zero=True))
    return charts
