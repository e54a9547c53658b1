"""The cost of ART-V: frames of the pocket, and one forward at the sizes of Stable Diffusion 2.1 with random weights.

One thread, fp32, on a CPU. Times are CPU seconds of the process there, so that other processes have little influence.
The pocket's ART-V file is the bundled one.

Keys: `seconds_per_frame`: Autoregressive Video on the pocket with the node's defaults (50 steps of DPM++ 2S ancestral,
four conditions), including decoding. `rss_16_mb`, `rss_1024_mb`: resident memory after that many frames of one job with
few steps, which writes its files to disk like the node; `rss_slope_mb_per_frame`: the slope in between. At both sizes
(keys of the pocket have no suffix): `batched_over_separate`: a step of Eq. 8 with its four predictions in one batch,
over one with four calls; `cached_over_uncached`: 50 steps of which only the first computes the adapters, over 50 steps
that all compute them, estimated from the least seconds of such steps. At the sizes of Stable Diffusion 2.1,
`over_plain_sd21`: a forward with ART-V over one of the plain U-Net (one frame of 320 pixels), with the adapters'
features already computed. All times are the least of the rounds.

With CUDA, in half precision, for 16 frames in one forward: `batches_per_second` and `memory_gb` by the side length in
pixels, to be compared with the paper's Table 3 (A100: 12.16, 5.55, 1.35 and 10.5, 11.1, 13.4 GB). Needs 10 GB.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...model_patches.artv.config import SD21, ArtvConfig
from ...model_patches.artv.guidance import CONDITIONS, Weights
from ...model_patches.artv.model import ArtvModel
from ..common.pocket_host import ARTV, PocketHost, one_by_one, start_comfyui
from ..common.report import finish
from .bench_temporal import random_weight
from .sd21 import CONTEXT, sd21_model, weight_shapes

SIZE = 64  # pixels of the pocket's frames
PROMPT = "a yellow star moving in a circle in the night sky"
TABLE_3 = {320: (12.16, 10.52), 448: (5.55, 11.08), 768: (1.35, 13.44)}  # batches per second, GB; on an A100
FRAMES = 16  # per forward in Table 3
STEPS = 50  # default of the node and of the paper


def clock() -> float:
    """CPU seconds of this process; on a GPU, wall time after its work is complete."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Subject:
    """A MODEL, the ART-V model for it, latents of one size, and two conditions."""

    model: Any
    artv: Any
    shape: tuple[int, int, int]
    positive: list
    negative: list

    def conditions(self) -> Any:
        """Random references and anchor, with the paper's noise level."""
        from ...model_patches.comfy_host.artv.checks import FrameInputs

        draw = torch.Generator().manual_seed(1)
        references, anchor, noise = (torch.randn(n, *self.shape, generator=draw) for n in (2, 1, 3))
        return FrameInputs(references, anchor[0], 200, noise)


def run_seconds(subject: Subject, steps: int, *, batch: int = 4, cache: bool = True) -> list[float]:
    """Seconds of each prediction in a run of Euler with the paper's weights. batch: expected rows of each call."""
    from comfy.patcher_extension import WrappersMP
    from comfy.samplers import KSampler, sampler_object

    from ...model_patches.comfy_host.artv.apply import apply_artv
    from ...model_patches.comfy_host.video.autoregressive import ArtvGuider, left_out

    seconds, rows = [], []

    def measure(executor: Any, *args: Any) -> Any:
        start_time = clock()
        result = executor(*args)
        seconds.append(clock() - start_time)
        return result

    def count(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    model = apply_artv(
        subject.model, subject.artv, subject.conditions(), left_out=left_out(CONDITIONS), cache=cache, each=False
    )
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "bench", measure)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench", count)
    guider = ArtvGuider(model, Weights())
    guider.set_conds(subject.positive, subject.negative)
    sampler = KSampler(model, steps, model.load_device, "euler", "normal", 1.0)
    noise = torch.randn(1, *subject.shape, generator=torch.Generator().manual_seed(2))
    guider.sample(noise, torch.zeros_like(noise), sampler_object("euler"), sampler.sigmas, disable_pbar=True, seed=0)
    if rows != [batch] * (4 // batch * steps):
        raise SystemExit(f"the MODEL was called with batches of {rows}: there is too little free memory for this run")
    return seconds


def ratios(subject: Subject, rounds: int, steps: int, suffix: str = "") -> dict[str, float]:
    """Relative times of batching and caching. steps: of each run, at least 2."""
    single = replace(subject, model=one_by_one(subject.model))
    kinds = {
        "in one batch": lambda: run_seconds(subject, steps),
        "in four calls": lambda: run_seconds(single, steps, batch=1),
        "with the adapters": lambda: run_seconds(subject, steps, cache=False),
    }
    run_seconds(subject, 1)  # warm-up
    first: dict[str, list[float]] = {kind: [] for kind in kinds}
    later: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, run in kinds.items():
            seconds = run()
            first[kind].append(seconds[0])
            later[kind] += seconds[1:]
    first_step, (batch, calls, no_cache) = min(first["in one batch"]), (min(values) for values in later.values())
    texts = [f"{min(values):.3f} s {kind}" for kind, values in later.items()]
    print(f"a step{suffix.replace('_', ' of ')}: {', '.join(texts)}; the first {first_step:.3f} s", flush=True)
    cache = (first_step + (STEPS - 1) * batch) / STEPS
    return {f"batched_over_separate{suffix}": batch / calls, f"cached_over_uncached{suffix}": cache / no_cache}


def make_roll(host: PocketHost, artv: Any, sampler: str, steps: int) -> Any:
    from ...model_patches.comfy_host.video.autoregressive import Rollout

    return Rollout(
        host.model,
        artv,
        host.vae,
        positive=host.condition([PROMPT]),
        negative=host.condition([""]),
        sampler=sampler,
        scheduler="normal",
        steps=steps,
        seed=0,
        size=(SIZE, SIZE),
        weights=Weights(),
        level=200,
    )


def frame_seconds(roll: Any, frames: int) -> float:
    """Median seconds over frames, without the first frame, which has no references."""
    seconds, state = [], None
    for frame in range(frames + 1):
        start_time = clock()
        latents, state = roll.sample(frame, 0, state, lambda _share: None)
        for _ in roll.decode(latents):
            pass
        seconds.append(clock() - start_time)
    return float(torch.tensor(seconds[1:]).median())


def memory(roll: Any, lengths: Sequence[int]) -> dict[str, float]:
    """Resident memory in MB at each length of one job, which is extended."""
    from ...rendering.formats import check_format  # they need PyAV, which the forwards here do without
    from ...rendering.job import open_job
    from ...rendering.loop import Output, Work, render
    from ..quality.bench_long import Meter, resident, slope

    meter = Meter()

    def decode(latents: Tensor):
        for frames in roll.decode(latents):
            yield frames.numpy()
        meter.clip_done()

    figures: dict[str, float] = {}
    output = Output(check_format("h264-mp4", SIZE, SIZE), Fraction(8), 1, {}, unit="frame")
    print("frames  seconds  resident MB", flush=True)
    with tempfile.TemporaryDirectory() as root, open_job(Path(root), "bench", roll.identity()) as (job, _):
        start_time = time.monotonic()
        for length in lengths:
            render(job, length, Work(roll.sample, decode, roll.inputs), output, watch=meter)
            figures[f"rss_{length}_mb"] = resident()
            print(f"{length:6} {time.monotonic() - start_time:8.1f} {resident():10.1f}", flush=True)
    values = torch.tensor([megabytes for _, megabytes in meter.ends], dtype=torch.float64)[lengths[0] :]
    return figures | {"rss_slope_mb_per_frame": slope(torch.arange(len(values), dtype=torch.float64), values)}


def pocket(args: argparse.Namespace) -> dict[str, float]:
    from ...model_patches.comfy_host.artv.files import load_artv

    host = PocketHost()
    artv = load_artv(ARTV)
    figures = {"seconds_per_frame": frame_seconds(make_roll(host, artv, "dpmpp_2s_ancestral", STEPS), args.frames)}
    print(f"a frame of the pocket: {figures['seconds_per_frame']:.2f} s", flush=True)
    conditions = host.condition([PROMPT]), host.condition([""])
    subject = Subject(host.model, artv, (4, SIZE // 4, SIZE // 4), *conditions)
    figures |= ratios(subject, args.rounds, args.steps)
    return figures | memory(make_roll(host, artv, "euler", 2), args.lengths)


def random_artv(config: ArtvConfig, dtype: torch.dtype) -> Any:
    """An ART-V model with random weights that ComfyUI manages, like one that `load_artv` returns for a file."""
    from ...model_patches import checkpoint, systems
    from ...model_patches.comfy_host.artv.files import hold_artv

    generator = torch.Generator().manual_seed(0)
    shapes = weight_shapes(ArtvModel, config)
    weights = {name: random_weight(name, shape, generator).to(dtype) for name, shape in shapes.items()}
    return hold_artv(checkpoint.Checkpoint(systems.ARTV, config.to_dict(), weights, {}, "random"), Path("random"))


def sd21_subject(dtype: torch.dtype, pixels: int) -> Subject:
    draw = torch.Generator().manual_seed(3)
    positive, negative = ([[torch.randn(1, 77, CONTEXT, generator=draw), {}]] for _ in range(2))
    return Subject(sd21_model(dtype), random_artv(SD21, dtype), (4, pixels // 8, pixels // 8), positive, negative)


def one_forward(subject: Subject, rows: int, rounds: int, *, artv: bool) -> float:
    """Least seconds of a call of the MODEL for `rows` frames and one condition; the first call is not timed."""
    from comfy import sample
    from comfy.patcher_extension import WrappersMP

    from ...model_patches.comfy_host.artv.apply import apply_artv

    seconds = []

    def measure(executor: Any, *args: Any, **kwargs: Any) -> Any:
        start_time = clock()
        result = executor(*args, **kwargs)
        seconds.append(clock() - start_time)
        return result

    # wrappers run in the order in which they were added: this one encloses everything that ART-V adds
    model = subject.model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench", measure)
    model = apply_artv(model, subject.artv, subject.conditions()) if artv else model
    noise = torch.randn(rows, *subject.shape, generator=torch.Generator().manual_seed(2))
    conditions, steps = (subject.positive, subject.negative), rounds + 1
    sample.sample(model, noise, steps, 1.0, "euler", "normal", *conditions, torch.zeros_like(noise), disable_pbar=True)
    return min(seconds[1:])


def sd21(args: argparse.Namespace) -> dict[str, float]:
    subject = sd21_subject(torch.float32, args.pixels)
    plain, artv = [], []
    for _ in range(args.rounds):
        plain.append(one_forward(subject, 1, 1, artv=False))
        artv.append(one_forward(subject, 1, 1, artv=True))
        print(f"Stable Diffusion 2.1: plain {plain[-1]:.2f} s, with ART-V {artv[-1]:.2f} s", flush=True)
    seconds = {"seconds_plain_sd21": min(plain), "seconds_sd21": min(artv)}
    figures = {"over_plain_sd21": min(artv) / min(plain), **seconds}
    return figures | ratios(subject, max(1, args.rounds - 1), 2, "_sd21")


def table_3(subject: Subject, sizes: Sequence[int], frames: int, rounds: int) -> dict[str, dict[int, float]]:
    """Batches per second at each size, with `frames` in one forward, and the peak memory in GB where there is a GPU."""
    rates, memory_gb = {}, {}
    for pixels in sizes:
        resized = replace(subject, shape=(subject.shape[0], pixels // 8, pixels // 8))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        rates[pixels] = 1 / one_forward(resized, frames, rounds, artv=True)
        memory_gb[pixels] = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        rate, size = TABLE_3.get(pixels, (float("nan"),) * 2)
        print(f"{pixels} px: {rates[pixels]:.2f} batches/s, {memory_gb[pixels]:.2f} GB; in the paper {rate}, {size}")
    return {"batches_per_second": rates, "memory_gb": memory_gb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=5, help="number of timed frames")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 1024], help="frames of the job, in rising order")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="steps of the pocket's runs with and without cache")
    parser.add_argument("--pixels", type=int, default=320, help="side of a frame at the sizes of Stable Diffusion 2.1")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start_comfyui()
    figures: dict[str, Any] = {}
    with torch.inference_mode():
        figures |= pocket(args)
        if torch.cuda.is_available():
            figures |= table_3(sd21_subject(torch.float16, 320), list(TABLE_3), FRAMES, 10)
        figures |= sd21(args)
    finish("artv", figures)


if __name__ == "__main__":
    main()
