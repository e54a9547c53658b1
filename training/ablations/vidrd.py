"""python -m stillmotion.training ablate vidrd: what reuse of the clip before does, part by part, on the pocket model.

Reuse needs no training: rows differ in sampling alone. Each video is `length` clips of one prompt; its first clip is
the same in all rows. Joins and mirrored repeats are `evaluation.metrics.continuity`'s, the other scores are of the last
clip, with intervals over the prompts. The sweeps change one of M, alpha and beta around the paper's setting
(arXiv 2309.03549, Figure 9). Where a temporal-aware decoder is given, it decodes the video of the paper's setting once
more, and clips of the truth (section 3.4).
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
from .jobs import MOTIONS, Job, PocketModel, draw_all, drawn, fingerprint, noise_of, pocket_model, temporal_decoder

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
WIDEST = Config(overlap=FRAMES, staged_guidance=1.0)  # the first clip keeps what any row may replay
DECODERS = {"decoder of the image model": PAPER, "temporal-aware decoder": "temporal"}
DECODER = POCKET / "temporal_decoder.safetensors"
RECONSTRUCTED = {"psnr": "PSNR, dB", "flicker": "flicker"}
JOINS = {"join": "join", "seam": "seam", "mirror": "mirror"}
COLUMNS = {**JOINS, **{k: v for k, v in report.COLUMNS.items() if k not in ("difference", "background")}}
READ = (
    "join: mean absolute difference of the last frame of a clip and the first of the next, pixels in 0..1; seam: that "
    "over the usual change of a frame; mirror: correlation with the clip before played backwards, background taken "
    "out. The rest is of the last clip. The paper (Figure 9): larger M, alpha > 0 and larger beta each better FVD and "
    "IS, and large M and beta more repetition."
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    prompts: int = 40
    sampling: int = 25  # DDIM steps
    length: int = 2  # clips of a video


QUICK = Budget(prompts=5, sampling=10)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command was asked for."""

    out: Path
    tokenizer: Path
    budget: Budget
    model: Path = POCKET / "motion.safetensors"
    decoder: Path | None = field(default_factory=lambda: DECODER if DECODER.exists() else None)
    split: str = "test"
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class VideoJob(Job):
    """A video of each prompt for each of `CONFIGS`, and with a decoder that of `PAPER` by it as the last row:
    (prompts, rows, length * f, 3, 64, 64)."""

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
            video, before = [first], history
            for fresh in noises[1:]:
                latents, before = self._clip(model, prompt, config, next_noise(before.noise, fresh, config), before)
                video.append(latents)
            videos.append(torch.cat(video, dim=1))
        shown = model.pictures(torch.cat(videos))
        if self.decoder is None:
            return shown
        clips = videos[CONFIGS.index(PAPER)][0].split(FRAMES)
        again = [model.reconstructed(clip, temporal_decoder(self.decoder)) for clip in clips]
        return torch.cat([shown, ((torch.cat(again).clamp(-1, 1) + 1) * 127.5).round().byte()[None]])

    def _clip(
        self, model: PocketModel, prompt: sprites.Clip, config: Config, noise: Tensor, before: History | None
    ) -> tuple[Tensor, History]:
        levels = sigma_from_alpha_bar(model.levels[timesteps(len(model.levels), self.steps)])
        recorder = Recorder(config, [*levels.tolist(), 0.0], before)
        latents = model.draw(prompt, noise, steps=self.steps, begin=recorder.step)
        return latents, recorder.history(noise)


def ablate(options: Options) -> dict:
    """Draw, score, write `out/ablation.md`, `.json` and `sweeps.png`; returns what the JSON holds."""
    wanted = jobs(options)
    draw_all(wanted, options.processes)
    after = options.budget.prompts + SPLITS[options.split]
    video_judge = judging.bundled_video_judge()
    real = judging.reference(video_judge, motions=MOTIONS, after=after)
    judges = judging.bundled_judge(), video_judge
    rows = [*CONFIGS, *(["temporal"] if options.decoder else [])]
    return write(options, {config: scores(wanted, row, judges, real) for row, config in enumerate(rows)})


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
    wanted: list[VideoJob], row: int, judges: tuple[Judge, VideoJudge], real: tuple[Tensor, Tensor]
) -> dict[str, Interval]:
    """Of one row: its joins, and its last clips against their prompts."""
    prompts = [prompt for job in wanted for prompt in job.prompts()]
    mine = [videos[row].clone() for videos in drawn(wanted)]  # not the other rows, which stand in the same files
    joins = [joins_of(video) for video in mine]
    last = [video[-FRAMES:] for video in mine]
    found = intervals(JOINS, [[join[name] for name in JOINS] for join in joins])
    return found | score(judging.sample(last, prompts, *judges), real)


def joins_of(video: Tensor) -> dict[str, float]:
    """Means over the joins of a video (length * f, 3, h, w)."""
    found = continuity.read(video, FRAMES)
    between = found.differences[FRAMES - 1 :: FRAMES]
    return {"join": fmean(between), "seam": fmean(found.seams), "mirror": fmean(found.mirror)}


@torch.no_grad()
def reconstructions(options: Options, decoder: Path) -> dict[str, dict[str, Interval]]:
    """PSNR (dB) and flicker of both decoders on rendered clips of held-out prompts, which neither has seen."""
    model, layers = pocket_model(options.model, options.tokenizer), temporal_decoder(decoder)
    vae: Any = model.base.vae
    plain, temporal = [], []
    for prompt in sprites.held_out(options.budget.prompts, motions=MOTIONS, first=SPLITS[options.split]):
        x = sprites.render(prompt, sprites.frame_times(FRAMES)) * 2 - 1
        z = vae.encode(x).latent_dist.mean
        for y, found in ((vae.decode(z).sample, plain), (model.reconstructed(z * SCALE, layers), temporal)):
            found.append((psnr(y, x).item(), flicker(y, x).item()))
    return {name: intervals(RECONSTRUCTED, found) for name, found in zip(DECODERS, (plain, temporal), strict=True)}


def write(options: Options, made: Mapping[Config | str, dict[str, Interval]]) -> dict:
    """The tables and curves in `out`."""
    settings = {"split": options.split, "model": options.model.name, **asdict(options.budget)}
    tables = {"parts": {name: made[config] for name, config in PARTS.items()}}
    for name, sweep in SWEEPS.items():
        tables[name] = {f"{name} {value:g}": made[config] for value, config in sweep.items()}
    text = [report.origin(command(), **settings), "", READ]
    if options.decoder:
        tables["decoder"] = {name: made[row] for name, row in DECODERS.items()}
    for rows in tables.values():
        text += ["", report.markdown(rows, COLUMNS)]
    if options.decoder:
        tables["truth"] = reconstructions(options, options.decoder)
        text += ["", "Rendered clips of the same prompts, encoded and decoded. Flicker: mean change over time that is"]
        text += ["not theirs, of values from -1 to 1.", "", report.markdown(tables["truth"], RECONSTRUCTED)]
    told = settings | {
        name: {row: report.figures(found) for row, found in rows.items()} for name, rows in tables.items()
    }
    (options.out / "ablation.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (options.out / "ablation.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    curves(made).save(options.out / "sweeps.png")
    log.info("%s", "\n".join(text))
    return told


def curves(made: Mapping[Config | str, dict[str, Interval]]) -> Image.Image:
    """Seam and mirrored repeat over M, alpha and beta."""
    rows = []
    for name, sweep in SWEEPS.items():
        xs = [float(value) for value in sweep]
        lines = {key: [made[config][key].value for config in sweep.values()] for key in ("seam", "mirror")}
        seam = line_chart({"": (xs, lines["seam"])}, title=f"Seam over {name}", x=name, y="jump / change", zero=True)
        mirror = line_chart({"": (xs, lines["mirror"])}, title=f"Repeat over {name}", x=name, y="correlation")
        rows.append(beside([seam, mirror]))
    return below(rows)
