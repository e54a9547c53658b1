"""python -m stillmotion.training ablate vidrd: the effect of reusing the previous clip, on the pocket model.

Reuse needs no training: the rows differ only in sampling. Each video consists of `length` clips of one prompt; its
first clip is the same in all rows. Joins and mirrored repeats are measured by `evaluation.metrics.continuity`; the
other scores are those of the last clip, with intervals over the prompts. The sweeps change one of M, alpha and beta
around the paper's setting (arXiv 2309.03549, Figure 9). If a temporal-aware decoder is given, it also decodes the video
of the paper's setting and rendered clips (section 3.4).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...evaluation.drawing.plots import below, beside, line_chart
from ...evaluation.judges.judge import Judge
from ...evaluation.judges.video_judge import FRAMES, VideoJudge
from ...evaluation.metrics import continuity
from ...evaluation.metrics.decoding import flicker, psnr
from ...evaluation.scores import report
from ...evaluation.scores.score import score
from ...evaluation.scores.statistics import Interval
from ...model_patches.core.levels import sigma_from_alpha_bar
from ...model_patches.pocket import SCALE
from ...model_patches.vidrd.reuse import Config, History, Recorder, next_noise
from ..data import sprites
from ..metrics import judging
from ..plans.common import POCKET
from ..sampling.ddim import timesteps
from .common import SPLITS, command, intervals, shares
from .jobs import MOTIONS, Job, PocketModel, draw_all, fingerprint, noise_of, pocket_model, read_clips, temporal_decoder

log = logging.getLogger(__name__)

OPTIONS = ("model", "decoder", "length")  # of the verb `ablate`

PAPER = Config()
PARTS = {
    "independent clips": Config(overlap=0, recycle=0.0, staged_guidance=0.0),
    "FNR": Config(recycle=0.0, staged_guidance=0.0),
    "FNR + PNS": Config(staged_guidance=0.0),
    "FNR + PNS + DSG": PAPER,
}
SWEEPS = {
    "M": {m: replace(PAPER, overlap=m) for m in (0, 2, 4, 8)},
    "alpha": {alpha: replace(PAPER, recycle=alpha) for alpha in (0.0, 1.0, 4.0, 16.0)},
    "beta": {beta: replace(PAPER, staged_guidance=beta) for beta in (0.0, 0.2, 0.4, 0.8, 1.0)},
}
CONFIGS = list(dict.fromkeys([*PARTS.values(), *(config for sweep in SWEEPS.values() for config in sweep.values())]))
WIDEST = Config(overlap=FRAMES, staged_guidance=1.0)  # with it the first clip records everything that any row may reuse
DECODERS = {"decoder of the image model": PAPER, "temporal-aware decoder": "temporal"}
DECODER = POCKET / "temporal_decoder.safetensors"
RECONSTRUCTED = {"psnr": "PSNR, dB", "flicker": "flicker"}
JOINS = {"join": "join", "seam": "seam", "mirror": "mirror"}
COLUMNS = {**JOINS, **{k: v for k, v in report.COLUMNS.items() if k not in ("difference", "background")}}
READ = (
    "join: mean absolute difference between the last frame of a clip and the first frame of the next, pixels in 0..1; "
    "seam: join divided by the usual change between frames; mirror: correlation with the previous clip played "
    "backwards, without the background. The other columns are for the last clip. The paper (Figure 9) reports better "
    "FVD and IS for larger M, alpha > 0 and larger beta, and more repetition for large M and beta."
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    prompts: int = 40
    sampling: int = 25  # DDIM steps
    length: int = 2  # clips of a video


QUICK = Budget(prompts=5, sampling=10)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command."""

    out: Path
    tokenizer: Path
    budget: Budget
    model: Path = POCKET / "motion.safetensors"
    decoder: Path | None = field(default_factory=lambda: DECODER if DECODER.exists() else None)
    split: str = "test"
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class VideoJob(Job):
    """A video of each prompt for each of `CONFIGS`: clips (prompts, rows, length * f, 3, 64, 64).

    With a decoder, the last row is the video of `PAPER` decoded with it.
    """

    length: int
    decoder: Path | None = None

    def settings(self) -> list[object]:
        decoder = [fingerprint(self.decoder)] if self.decoder else []
        return [self.length, [asdict(config) for config in CONFIGS], *decoder, *super().settings()]

    def clips(self) -> Tensor:
        model = pocket_model(self.model, self.tokenizer)
        return torch.stack([self._rows(model, p, number) for number, p in enumerate(self.prompts(), self.first)])

    def _rows(self, model: PocketModel, prompt: sprites.Clip, number: int) -> Tensor:
        noises = [noise_of(self.seed, number, clip) for clip in range(self.length)]
        first, history = self._clip(model, prompt, WIDEST, noises[0], None)
        videos = []
        for config in CONFIGS:
            video, previous = [first], history
            for noise in noises[1:]:
                mixed = next_noise(previous.noise, noise, config)
                latents, previous = self._clip(model, prompt, config, mixed, previous)
                video.append(latents)
            videos.append(torch.cat(video, dim=1))
        pictures = model.pictures(torch.cat(videos))
        if self.decoder is None:
            return pictures
        clips = videos[CONFIGS.index(PAPER)][0].split(FRAMES)
        frames = torch.cat([model.decode_with(clip, temporal_decoder(self.decoder)) for clip in clips])
        return torch.cat([pictures, ((frames.clamp(-1, 1) + 1) * 127.5).round().byte()[None]])

    def _clip(
        self, model: PocketModel, prompt: sprites.Clip, config: Config, noise: Tensor, previous: History | None
    ) -> tuple[Tensor, History]:
        levels = sigma_from_alpha_bar(model.levels[timesteps(len(model.levels), self.steps)])
        recorder = Recorder(config, [*levels.tolist(), 0.0], previous)
        latents = model.draw(prompt, noise, steps=self.steps, before_step=recorder.step)
        return latents, recorder.history(noise)


def ablate(options: Options) -> dict:
    """Sample, score, and write `out/ablation.md`, `.json` and `sweeps.png`; returns the content of the JSON."""
    video_jobs = jobs(options)
    draw_all(video_jobs, options.processes)
    after = options.budget.prompts + SPLITS[options.split]
    video_judge = judging.bundled_video_judge()
    real = judging.reference(video_judge, motions=MOTIONS, after=after)
    judges = judging.bundled_judge(), video_judge
    rows = [*CONFIGS, *(["temporal"] if options.decoder else [])]
    return write(options, {config: scores(video_jobs, row, judges, real) for row, config in enumerate(rows)})


def jobs(options: Options) -> list[VideoJob]:
    budget = options.budget
    return [
        VideoJob(
            model=options.model,
            file=options.out / "videos" / f"{options.split}-{first:05d}.safetensors",
            seed=0,
            steps=budget.sampling,
            first=first,
            count=count,
            tokenizer=options.tokenizer,
            length=budget.length,
            decoder=options.decoder,
        )
        for first, count in shares(options.split, budget.prompts)
    ]


def scores(
    video_jobs: list[VideoJob], row: int, judges: tuple[Judge, VideoJudge], real: tuple[Tensor, Tensor]
) -> dict[str, Interval]:
    """The scores of one row: those of its joins, and those of its last clips for their prompts."""
    prompts = [prompt for job in video_jobs for prompt in job.prompts()]
    videos = [rows[row].clone() for rows in read_clips(video_jobs)]  # a copy, which does not hold the other rows
    joins = [joins_of(video) for video in videos]
    last_clips = [video[-FRAMES:] for video in videos]
    join_scores = intervals(JOINS, [[join[name] for name in JOINS] for join in joins])
    return join_scores | score(judging.sample(last_clips, prompts, *judges), real)


def joins_of(video: Tensor) -> dict[str, float]:
    """Means over the joins of a video (length * f, 3, h, w)."""
    reading = continuity.read(video, FRAMES)
    differences = reading.differences[FRAMES - 1 :: FRAMES]
    return {"join": fmean(differences), "seam": fmean(reading.seams), "mirror": fmean(reading.mirror)}


@torch.no_grad()
def reconstructions(options: Options, decoder: Path) -> dict[str, dict[str, Interval]]:
    """PSNR (dB) and flicker of both decoders on rendered clips of held-out prompts, on which neither was trained."""
    model, layers = pocket_model(options.model, options.tokenizer), temporal_decoder(decoder)
    vae: Any = model.base.vae
    plain, temporal = [], []
    for prompt in sprites.held_out(options.budget.prompts, motions=MOTIONS, first=SPLITS[options.split]):
        x = sprites.render(prompt, sprites.frame_times(FRAMES)) * 2 - 1
        z = vae.encode(x).latent_dist.mean
        for y, values in ((vae.decode(z).sample, plain), (model.decode_with(z * SCALE, layers), temporal)):
            values.append((psnr(y, x).item(), flicker(y, x).item()))
    return {name: intervals(RECONSTRUCTED, values) for name, values in zip(DECODERS, (plain, temporal), strict=True)}


def write(options: Options, results: Mapping[Config | str, dict[str, Interval]]) -> dict:
    """Write the tables and curves into `out`."""
    settings = {"split": options.split, "model": options.model.name, **asdict(options.budget)}
    tables = {"parts": {name: results[config] for name, config in PARTS.items()}}
    for name, sweep in SWEEPS.items():
        tables[name] = {f"{name} {value:g}": results[config] for value, config in sweep.items()}
    text = [report.origin(command(), **settings), "", READ]
    if options.decoder:
        tables["decoder"] = {name: results[row] for name, row in DECODERS.items()}
    for rows in tables.values():
        text += ["", report.markdown(rows, COLUMNS)]
    if options.decoder:
        tables["truth"] = reconstructions(options, options.decoder)
        text += ["", "Rendered clips of the same prompts, encoded and decoded. Flicker: mean absolute difference of"]
        text += ["the changes over time between decoded and original clip, pixels in -1..1.", ""]
        text += [report.markdown(tables["truth"], RECONSTRUCTED)]
    result = settings | {name: {key: report.figures(row) for key, row in rows.items()} for name, rows in tables.items()}
    (options.out / "ablation.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (options.out / "ablation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    curves(results).save(options.out / "sweeps.png")
    log.info("%s", "\n".join(text))
    return result


def curves(results: Mapping[Config | str, dict[str, Interval]]) -> Image.Image:
    """Charts of seam and mirrored repeat over M, alpha and beta."""
    rows = []
    for name, sweep in SWEEPS.items():
        xs = [float(value) for value in sweep]
        lines = {key: [results[config][key].value for config in sweep.values()] for key in ("seam", "mirror")}
        seam = line_chart({"": (xs, lines["seam"])}, title=f"Seam over {name}", x=name, y="jump / change", zero=True)
        mirror = line_chart({"": (xs, lines["mirror"])}, title=f"Repeat over {name}", x=name, y="correlation")
        rows.append(beside([seam, mirror]))
    return below(rows)
