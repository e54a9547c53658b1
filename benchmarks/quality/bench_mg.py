"""Cost and effect of the mitigating gradient, on the pocket model with motion; DDIM 25 steps, CFG 7.5, 16 frames.

Keys: `overhead` (time of the guidance over that of a sampling step, medians; CPU time of the process, unless a GPU is
used). The others are given for each alpha: `difference` (mean absolute difference of adjacent frames, pixels in 0..1);
`travel` (mean displacement of the sprite in image widths: a large alpha freezes the clip); `legible` (share of frames
that show the prompt's colour and shape) and `jump` (largest adjacent-frame difference over the median one, mean over
the clips: a large alpha breaks the clip); `eps_ratio` (mean relative change of the noise prediction).

Keys with the prefix `bare_` are the same figures for the formula without our additions: no compensation of size and
frame count, no limit. The pocket's latents are a quarter of the paper's, so that a bare alpha acts like five times the
default alpha.
"""

import argparse
import time
from itertools import pairwise, product
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor

from ...evaluation.judges.judge import load_judge
from ...evaluation.scores.clips import ClipReading, read_clip
from ...model_patches.harivo.mitigating import Config
from ...training.data import sprites
from ..common.pocket_host import JUDGE, MOTION, POCKET, PocketHost
from ..common.report import finish

ALPHAS = (0.0, 20.0, 40.0, 150.0, 200.0)
FRAMES = 16
BARE = {"compensate_size": False, "compensate_frames": False, "max_eps_ratio": 0.0}


def clock() -> float:
    """CPU seconds of this process, since other processes share the cores; wall time where a GPU is used."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def overhead(host: PocketHost, model, config: Config, *, repeats: int, steps: int) -> dict[str, float]:
    """Median seconds of one guidance call and of one whole step (both predictions of CFG, guidance included)."""
    from ...model_patches.comfy_host.guidance.mitigating import apply_mitigating_gradient

    starts: list[float] = []
    ends: list[float] = []

    def stopwatch(times: list[float]):
        def note(args: dict) -> Tensor:
            times.append(clock())
            return args["denoised"]

        return note

    model = model.clone()
    model.set_model_sampler_post_cfg_function(stopwatch(starts))
    model, _ = apply_mitigating_gradient(model, config, frames=FRAMES)
    model.set_model_sampler_post_cfg_function(stopwatch(ends))
    guidance_times, step_times = [], []
    for seed in range(repeats):
        starts.clear()
        ends.clear()
        host.sample(model, ["a red circle moving right on a black background"], frames=FRAMES, seed=seed, steps=steps)
        guidance_times += [end - start for start, end in zip(starts, ends, strict=True)]
        step_times += [end - start for start, end in pairwise(starts)]
    seconds = {"guidance_seconds": median(guidance_times), "step_seconds": median(step_times)}
    return {"overhead": seconds["guidance_seconds"] / seconds["step_seconds"], **seconds}


def jump(frames: Tensor) -> float:
    """The largest adjacent-frame difference over the median one; frames: (f, ...)."""
    differences = frames.diff(dim=0).abs().flatten(1).mean(1)
    return (differences.max() / differences.median().clamp(min=1e-6)).item()


def legible(reading: ClipReading, clip: sprites.Clip) -> float:
    """Share of the frames that show the colour and the shape of the prompt."""
    target = list(sprites.COLOURS).index(clip.sprite.colour), sprites.SHAPES.index(clip.sprite.shape)
    return mean(pair == target for pair in zip(reading.colours, reading.shapes, strict=True))


def effect(
    host: PocketHost, model, judge, config: Config, clips: list[sprites.Clip], *, seeds: int, steps: int
) -> dict[str, float]:
    """The figures of one alpha, as means over prompts and seeds."""
    from ...model_patches.comfy_host.guidance.mitigating import apply_mitigating_gradient

    guided_model, readout = apply_mitigating_gradient(model, config, frames=FRAMES)
    rows = []
    for number, clip in enumerate(clips):
        for seed in range(seeds):
            prompt, number_seed = [sprites.caption(clip)], 1000 * seed + number
            latent = host.sample(guided_model, prompt, frames=FRAMES, seed=number_seed, steps=steps)
            frames = host.decode(latent)
            reading = read_clip(judge, frames)
            rows.append(
                {
                    "difference": reading.difference,
                    "travel": reading.distance,
                    "legible": legible(reading, clip),
                    "jump": jump(frames),
                    "eps_ratio": mean(call.eps_ratio for call in readout.records[-1].calls),
                }
            )
    return {key: mean(row[key] for row in rows) for key in rows[0]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4, help="held-out prompts with a direction")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=4, help="number of timed runs")
    parser.add_argument("--steps", type=int, default=25, help="of every run")
    parser.add_argument("--alphas", type=float, nargs="+", default=list(ALPHAS))
    parser.add_argument("--kernel", default=Config().kernel)
    for name, path in (("pocket", POCKET), ("motion", MOTION), ("judge", JUDGE)):
        parser.add_argument(f"--{name}", type=Path, default=path)
    args = parser.parse_args(arguments)
    host, judge = PocketHost(args.pocket), load_judge(args.judge)
    model = host.motion(args.motion, frames=FRAMES)
    times = overhead(host, model, Config(kernel=args.kernel), repeats=args.repeats, steps=args.steps)
    print(
        "guidance {guidance_seconds:.6f} s of a step of {step_seconds:.4f} s: {overhead:.4%}".format(**times),
        flush=True,
    )
    clips = sprites.held_out(args.prompts, motions=tuple(sprites.DIRECTIONS))
    figures: dict[str, dict[str, float]] = {}
    for alpha, (prefix, options) in product(args.alphas, (("", {}), ("bare_", BARE))):
        config = Config(alpha=alpha, kernel=args.kernel, **options)
        row = effect(host, model, judge, config, clips, seeds=args.seeds, steps=args.steps)
        print(f"{prefix}alpha {alpha:5g}: " + ", ".join(f"{key} {value:.4f}" for key, value in row.items()), flush=True)
        for key, value in row.items():
            figures.setdefault(prefix + key, {})[f"{alpha:g}"] = round(value, 5)
    finish("mg", {"overhead": round(times["overhead"], 6), **figures, "prompts": len(clips), "seeds": args.seeds})


if __name__ == "__main__":
    main()
