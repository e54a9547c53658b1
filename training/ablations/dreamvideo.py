"""python -m stillmotion.training ablate dreamvideo: what the branch, the image and both scales do, on the pocket model.

Nothing is trained: rows differ in sampling alone, on one DreamVideo file. The image of a clip is the first frame of
what its held-out prompt means, rendered. "without branch" is the same U-Net and motion model, which sees no image;
"image to image" is that, too, and begins with the noised image in every frame. The sweeps change one scale of Eq. 5, or
both. A stage is a clip whose image is the last frame of the clip before (arXiv 2312.03018, section 4.4); its prompt
turns back at every stage.
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
from .image_jobs import ImageJob, Row, first_frame, told
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
        "image alone, begun with it": Row(caption=False, noised=1.0),
        "image alone, begun with it, s_i 2": Row(caption=False, noised=1.0, image=2.0),
    },
    "s_i": {f"s_i {scale:g}": Row(image=scale) for scale in (1.0, 2.0, 3.0, 5.0, 10.0)},
    "s_t": {f"s_t {scale:g}": Row(text=scale) for scale in (1.0, 3.0, 7.5, 12.0)},
    "both": {f"both {scale:g}": Row(text=scale, image=scale) for scale in (1.0, 2.0, 3.0, 5.0, 7.5)},
}
PAIRED = ("parts", "modes")  # whose first row, which is the same, is compared with the others
STAGES = "stages"
FIRST = {"fff_ssim": "FFF-SSIM", "pocket_fff": "pocket FFF", "contrast": "contrast"}
DRIFTS = {"colour_drift": "colour drift", "class_drift": "class drift"}
COLUMNS = {**FIRST, **DRIFTS, **report.COLUMNS}
OVER = {  # curves
    "s_i": ("fff_ssim", "contrast"),
    "s_t": ("fff_ssim", "direction"),
    "both": ("fff_ssim", "direction"),
}
SHOWN = 8  # first frames on the sheet
READ = (
    "Of the first frame and the image: FFF-SSIM; pocket FFF, the cosine of the judge's features; contrast, standard "
    "deviation of the pixels of the one minus that of the other. Drifts are of the last frame against the image: "
    "colour, of mean and deviation of each channel, pixels in 0..1; class, of the judge's probabilities, 0..1. Image "
    "to image begins with the image, noised to this share of the schedule; the difference of adjacent frames tells how "
    "much still moves. The paper, on UCF-101 and MSR-VTT: FFF-SSIM "
    "0.37 and 0.36, text alone FVD 463.76 and 250.80, text and image 214.52 and 167.80 (Tables 1 and 2); brightness "
    "and contrast grow with s_i, burnt from 15 on (figure). It tells neither s_t nor s_i: here both are "
    f"{DEFAULT_SCALE:g}; what sees no image has the pocket's guidance, {GUIDANCE:g}."
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    prompts: int = 40
    sampling: int = 25  # DDIM steps
    length: int = 4  # stages


QUICK = Budget(prompts=5, sampling=8, length=2)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command was asked for."""

    out: Path
    tokenizer: Path
    budget: Budget
    model: Path = POCKET / "dreamvideo.safetensors"
    motion: Path | None = None  # the motion model beside a file that holds the branch alone; none: the bundled one
    rows: tuple[str, ...] = (*TABLES, STAGES)
    split: str = "test"
    processes: int = 1


@dataclass(frozen=True)
class Found:
    """Of one row."""

    scores: dict[str, Interval]
    sample: Sample
    each: Tensor  # (n, 5), of each prompt what `FIRST` and `DRIFTS` name
    frames: Tensor  # (SHOWN or less, 3, 64, 64), first frames
    drifts: dict[str, list[float]]  # by name, of each frame against the image, the mean over prompts

    def minus(self, other: "Found", real: tuple[Tensor, Tensor]) -> dict[str, Interval]:
        """In pairs: the same prompt, image and noise."""
        each = intervals(FIRST | DRIFTS, (self.each - other.each).tolist())
        return each | compare(self.sample, other.sample, real)


def chosen(keys: str) -> tuple[str, ...]:
    """Tables by their names, "all" or "parts,stages,...". ConfigError names a key that is none."""
    known = (*TABLES, STAGES)
    names = known if keys == "all" else tuple(key.strip() for key in keys.split(","))
    for name in names:
        if name not in known:
            raise ConfigError(f"--rows: there are no rows {name!r}; there are {', '.join(known)}")
    return names


def ablate(options: Options) -> dict:
    """Draw, score, write `out/ablation.md`, `.json`, `curves.png` and `first_frames.png`; returns what the JSON
    holds."""
    wanted = jobs(options)
    draw_all(wanted, options.processes)
    prompts = [prompt for job in wanted for prompt in job.prompts()]
    images = torch.cat([first_frame(prompt) for prompt in prompts])
    judges = Judges.load(options.budget.prompts + SPLITS[options.split])
    made = {row: judges.found(clips_of(wanted, "clips", i), images, prompts) for i, row in enumerate(wanted[0].rows)}
    tables = {name: {key: made[row] for key, row in TABLES[name].items()} for name in options.rows if name != STAGES}
    if STAGES in options.rows:
        tables[STAGES] = stages_of(wanted, judges, images, prompts, options.budget.length)
    return write(options, tables, changes(tables, judges.real), images)


def jobs(options: Options) -> list[ImageJob]:
    budget, rows = options.budget, [row for name in options.rows for row in TABLES.get(name, {}).values()]
    return [
        ImageJob(
            model=options.model,
            motion=beside_it(options),
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


def beside_it(options: Options) -> Path | None:
    """The motion model that a file without one draws with. ConfigError when the file cannot be used."""
    try:
        return _motion(options.model, options.motion)
    except CheckpointError as error:
        raise ConfigError(f"{error} (--model FILE: a DreamVideo file of the pocket model)") from error


@lru_cache(maxsize=1)
def _motion(model: Path, given: Path | None) -> Path | None:
    own = DreamVideoConfig.from_dict(checkpoint.load(model, expect=DREAMVIDEO).config).motion
    if own and given:
        raise ConfigError(f"{model.name} has a motion model of its own: leave out --motion")
    return None if own else given or POCKET / "motion.safetensors"


@dataclass(frozen=True)
class Judges:
    """Who looks at the clips, and the real ones they are compared with."""

    judge: Judge
    video: VideoJudge
    real: tuple[Tensor, Tensor]

    @staticmethod
    def load(after: int) -> "Judges":
        """after: held-out prompts that are scored, behind which the real clips begin."""
        video = judging.bundled_video_judge()
        real = judging.reference(video, motions=MOTIONS, after=after)
        return Judges(judging.bundled_judge(), video, real)

    def found(
        self, clips: Sequence[Tensor], images: Tensor, prompts: Sequence[sprites.Clip], against: Tensor | None = None
    ) -> Found:
        """clips: (f, 3, 64, 64) in 0..1 each; images: (n, 3, 64, 64), what they were made from; against: what drift is
        measured from, if it is another."""
        firsts = torch.stack([clip[0] for clip in clips])
        begins = images if against is None else against
        tracks = [
            drift.track(self.judge, torch.cat([image[None], clip])) for image, clip in zip(begins, clips, strict=True)
        ]
        last = torch.tensor([[track[name][-1] for name in DRIFTS] for track in tracks])
        each = torch.cat([self.first(firsts, images), last], dim=1)
        seen = judging.sample(clips, prompts, self.judge, self.video)
        scores = intervals(FIRST | DRIFTS, each.tolist()) | score(seen, self.real)
        drifts = {name: torch.tensor([track[name][1:] for track in tracks]).mean(0).tolist() for name in DRIFTS}
        return Found(scores, seen, each, firsts[:SHOWN], drifts)

    @torch.no_grad()
    def first(self, firsts: Tensor, images: Tensor) -> Tensor:
        """What `FIRST` names of each pair, (n, 3)."""
        alike = F.cosine_similarity(self.judge.features(firsts), self.judge.features(images))
        contrast = firsts.flatten(1).std(1, correction=0) - images.flatten(1).std(1, correction=0)
        return torch.stack([first_frame_ssim(firsts, images), alike, contrast], dim=1)


def changes(tables: Mapping[str, Mapping[str, Found]], real: tuple[Tensor, Tensor]) -> dict[str, dict[str, Interval]]:
    """The first row of the tables of `PAIRED` minus each other one."""
    found = {}
    for (_, ours), *others in (tables[name].items() for name in PAIRED if name in tables):
        found |= {f"minus {name}": ours.minus(other, real) for name, other in others}
    return found


def stages_of(
    wanted: Sequence[ImageJob], judges: Judges, images: Tensor, prompts: Sequence[sprites.Clip], length: int
) -> dict[str, Found]:
    """Each stage against its own image and prompt; its drift against the first image."""
    videos, found, given = clips_of(wanted, "stages"), {}, images
    for stage in range(length):
        clips = [video[stage * FRAMES : (stage + 1) * FRAMES] for video in videos]
        asked = [told(prompt, stage) for prompt in prompts]
        found[f"stage {stage + 1}"] = judges.found(clips, given, asked, images)
        given = torch.stack([clip[-1] for clip in clips])
    return found


def clips_of(wanted: Sequence[ImageJob], name: str, row: int | None = None) -> list[Tensor]:
    """Clips (f, 3, 64, 64) in 0..1, in the order of the prompts."""
    clips: list[Tensor] = []
    for job in wanted:
        with safe_open(job.file, "pt") as file:
            held = file.get_slice(name)
            clips += list((held[:] if row is None else held[row]).float() / 255)
    return clips


def write(
    options: Options,
    tables: Mapping[str, Mapping[str, Found]],
    gains: Mapping[str, Mapping[str, Interval]],
    images: Tensor,
) -> dict:
    """The tables and pictures in `out`."""
    settings = {"split": options.split, "model": options.model.name, **asdict(options.budget)}
    text = [report.origin(command(), **settings), "", READ]
    data: dict[str, object] = {}
    for name, rows in tables.items():
        text += ["", report.markdown({key: found.scores for key, found in rows.items()}, COLUMNS)]
        data[name] = {key: report.figures(found.scores) | {"drifts": found.drifts} for key, found in rows.items()}
    if gains:
        text += ["", "Branch, text and image, minus the others, in pairs:", "", report.markdown(gains, COLUMNS)]
        data["changes"] = {name: report.figures(found) for name, found in gains.items()}
    if "parts" in tables:
        sheet(tables["parts"], images).save(options.out / "first_frames.png")
    (options.out / "ablation.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (options.out / "ablation.json").write_text(json.dumps(settings | data, indent=1) + "\n", encoding="utf-8")
    if drawn := curves(tables):
        beside(drawn).save(options.out / "curves.png")
    log.info("%s", "\n".join(text))
    return settings | data


def sheet(rows: Mapping[str, Found], images: Tensor) -> Image.Image:
    """Images, and below them the first frame that each row made of them."""
    tiles = [[as_picture(image) for image in images[:SHOWN]]]
    tiles += [[as_picture(frame) for frame in found.frames] for found in rows.values()]
    heads = [""] * (1 + len(tiles[0]))
    return contact_sheet(tiles, ["image", *rows], heads, title="First frames", text="held-out images and prompts")


def curves(tables: Mapping[str, Mapping[str, Found]]) -> list[Image.Image]:
    """First-frame fidelity over the scales, with contrast or direction, and drift over the frames of all stages: those
    that were made."""
    found = []
    for name, scores in OVER.items():
        if name in tables:
            xs = [float(key.split()[1]) for key in tables[name]]
            lines = {COLUMNS[s]: (xs, [row.scores[s].value for row in tables[name].values()]) for s in scores}
            found.append(line_chart(lines, title=f"Over {name}", x=name, y="score", zero=True))
    if STAGES in tables:
        tracks = {
            title: [v for row in tables[STAGES].values() for v in row.drifts[key]] for key, title in DRIFTS.items()
        }
        lines = {title: (list(map(float, range(len(track)))), track) for title, track in tracks.items()}
        found.append(line_chart(lines, title="Drift over the stages", x="frame", y="drift", zero=True))
    return found
