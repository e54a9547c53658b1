"""What ART-V costs: frames of the pocket, and one forward at the sizes of Stable Diffusion 2.1 with random weights.

One thread, fp32, on a CPU; seconds are the process' own there, so that other work counts little. The pocket's ART-V
file is the bundled one; while there is none, a fresh one of its sizes, which takes the same time.

Keys: `seconds_per_frame`: of Autoregressive Video on the pocket, with the node's defaults (50 steps of DPM++ 2S
ancestral, four conditions), decoding included. `rss_16_mb`, `rss_1024_mb`: resident memory after so many frames of one
job of few steps, its files on the disk as the node writes them; `rss_slope_mb_per_frame` between. At both sizes (those
of the pocket have no ending): `batched_over_separate`: a step of Eq. 8 in one batch of four over one in four calls;
`cached_over_uncached`: 50 steps in which the adapters work in the first over 50 in which they work in each, from the
least seconds of such steps; at the sizes of Stable Diffusion 2.1 `over_plain_sd21`: a forward with all of ART-V over
one of the plain U-Net (one frame of 320 pixels), the adapters' features being there already. Least of the rounds.

With CUDA also, in half precision, for 16 frames in one forward: `batches_per_second` and `memory_gb` by the pixels of a
side, beside the paper's Table 3 (A100: 12.16, 5.55, 1.35 and 10.5, 11.1, 13.4 GB). Needs 10 GB.
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
from ...rendering.formats import check_format
from ...rendering.job import open_job
from ...rendering.loop import Output, Work, render
from ..common.pocket_host import ARTV, PocketHost, one_by_one, start_comfyui
from ..common.report import finish
from ..quality.bench_long import Meter, resident, slope
from .bench_temporal import random_weight
from .sd21 import CONTEXT, named, sd21_model

SIZE = 64  # pixels of the pocket's frames
PROMPT = "a yellow star moving in a circle in the night sky"
TABLE_3 = {320: (12.16, 10.52), 448: (5.55, 11.08), 768: (1.35, 13.44)}  # batches a second, GB; on an A100
FRAMES = 16  # in its forward
STEPS = 50  # of the node and the paper


def clock() -> float:
    """Seconds of this process; on a GPU those of the wall, when its work is done."""
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

    def given(self) -> Any:
        """Random references and anchor, with the paper's noise on them."""
        from ...model_patches.comfy_host.artv.checks import Given

        draw = torch.Generator().manual_seed(1)
        references, anchor, noise = (torch.randn(n, *self.shape, generator=draw) for n in (2, 1, 3))
        return Given(references, anchor[0], 200, noise)


def run_seconds(subject: Subject, steps: int, *, batch: int = 4, cache: bool = True) -> list[float]:
    """Of each prediction of a run of Euler under the paper's weights. batch: rows that each call should have."""
    from comfy.patcher_extension import WrappersMP
    from comfy.samplers import KSampler, sampler_object

    from ...model_patches.comfy_host.artv.apply import apply_artv
    from ...model_patches.comfy_host.video.autoregressive import ArtvGuider, left_out

    spent, calls = [], []

    def timed(executor: Any, *args: Any) -> Any:
        begun = clock()
        found = executor(*args)
        spent.append(clock() - begun)
        return found

    def counted(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(x))
        return executor(x, *args, **kwargs)

    model = apply_artv(
        subject.model, subject.artv, subject.given(), left_out=left_out(CONDITIONS), cache=cache, each=False
    )
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "bench", timed)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench", counted)
    guider = ArtvGuider(model, Weights())
    guider.set_conds(subject.positive, subject.negative)
    sampler = KSampler(model, steps, model.load_device, "euler", "normal", 1.0)
    noise = torch.randn(1, *subject.shape, generator=torch.Generator().manual_seed(2))
    guider.sample(noise, torch.zeros_like(noise), sampler_object("euler"), sampler.sigmas, disable_pbar=True, seed=0)
    if calls != [batch] * (4 // batch * steps):
        raise SystemExit(f"the conditions went through the MODEL in batches of {calls}: there is too little memory")
    return spent


def ratios(subject: Subject, rounds: int, steps: int, ending: str = "") -> dict[str, float]:
    """What batching and caching are worth. steps: of each run, at least 2."""
    single = replace(subject, model=one_by_one(subject.model))
    kinds = {
        "in one batch": lambda: run_seconds(subject, steps),
        "in four calls": lambda: run_seconds(single, steps, batch=1),
        "with the adapters in it": lambda: run_seconds(subject, steps, cache=False),
    }
    run_seconds(subject, 1)  # warms up
    first: dict[str, list[float]] = {kind: [] for kind in kinds}
    later: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, run in kinds.items():
            spent = run()
            first[kind].append(spent[0])
            later[kind] += spent[1:]
    begun, (batched, separate, uncached) = min(first["in one batch"]), (min(values) for values in later.values())
    each = [f"{min(values):.3f} s {kind}" for kind, values in later.items()]
    print(f"a step{ending.replace('_', ' of ')}: {', '.join(each)}; the first {begun:.3f} s", flush=True)
    cached = (begun + (STEPS - 1) * batched) / STEPS
    return {f"batched_over_separate{ending}": batched / separate, f"cached_over_uncached{ending}": cached / uncached}


def make_roll(host: PocketHost, artv: Any, sampler: str, steps: int) -> Any:
    from ...model_patches.comfy_host.video.autoregressive import Roll

    return Roll(
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
    """Median over frames, without the first one, which has no references."""
    spent, before = [], None
    for frame in range(frames + 1):
        begun = clock()
        latents, before = roll.sample(frame, 0, before, lambda _share: None)
        for _ in roll.decode(latents):
            pass
        spent.append(clock() - begun)
    return float(torch.tensor(spent[1:]).median())


def memory(roll: Any, lengths: Sequence[int]) -> dict[str, float]:
    """Resident megabytes at each length of one job that grows."""
    meter = Meter()

    def decode(latents: Tensor):
        for frames in roll.decode(latents):
            yield frames.numpy()
        meter.clip_done()

    figures: dict[str, float] = {}
    output = Output(check_format("h264-mp4", SIZE, SIZE), Fraction(8), 1, {}, unit="frame")
    print("frames  seconds  resident MB", flush=True)
    with tempfile.TemporaryDirectory() as root, open_job(Path(root), "bench", roll.identity()) as (job, _):
        began = time.monotonic()
        for length in lengths:
            render(job, length, Work(roll.sample, decode, roll.inputs), output, watch=meter)
            figures[f"rss_{length}_mb"] = resident()
            print(f"{length:6} {time.monotonic() - began:8.1f} {resident():10.1f}", flush=True)
    made = torch.tensor([megabytes for _, megabytes in meter.ends], dtype=torch.float64)[lengths[0] :]
    return figures | {"rss_slope_mb_per_frame": slope(torch.arange(len(made), dtype=torch.float64), made)}


def pocket(args: argparse.Namespace) -> dict[str, float]:
    from ...model_patches.comfy_host.artv.files import load_artv

    host = PocketHost()
    artv = load_artv(ARTV)
    figures = {"seconds_per_frame": frame_seconds(make_roll(host, artv, "dpmpp_2s_ancestral", STEPS), args.frames)}
    print(f"a frame of the pocket: {figures['seconds_per_frame']:.2f} s", flush=True)
    words = host.condition([PROMPT]), host.condition([""])
    subject = Subject(host.model, artv, (4, SIZE // 4, SIZE // 4), *words)
    figures |= ratios(subject, args.rounds, args.steps)
    return figures | memory(make_roll(host, artv, "euler", 2), args.lengths)


def random_artv(config: ArtvConfig, dtype: torch.dtype) -> Any:
    """An ART-V model with random weights in ComfyUI's hands, as `load_artv` gives one of a file."""
    from ...model_patches import checkpoint
    from ...model_patches.comfy_host.artv.files import hold_artv

    generator = torch.Generator().manual_seed(0)
    shapes = named(ArtvModel, config)
    weights = {name: random_weight(name, shape, generator).to(dtype) for name, shape in shapes.items()}
    return hold_artv(checkpoint.Checkpoint(checkpoint.ARTV, config.to_dict(), weights, {}, "random"), Path("random"))


def sd21_subject(dtype: torch.dtype, pixels: int) -> Subject:
    draw = torch.Generator().manual_seed(3)
    words = [[[torch.randn(1, 77, CONTEXT, generator=draw), {}]] for _ in range(2)]
    return Subject(sd21_model(dtype), random_artv(SD21, dtype), (4, pixels // 8, pixels // 8), words[0], words[1])


def one_forward(subject: Subject, rows: int, rounds: int, *, artv: bool) -> float:
    """Least seconds of a call of the MODEL for so many frames under one condition; the first of a run is not timed."""
    from comfy import sample
    from comfy.patcher_extension import WrappersMP

    from ...model_patches.comfy_host.artv.apply import apply_artv

    spent = []

    def timed(executor: Any, *args: Any, **kwargs: Any) -> Any:
        begun = clock()
        found = executor(*args, **kwargs)
        spent.append(clock() - begun)
        return found

    # wrappers run in the order they were added: this one is around all that ART-V adds
    model = subject.model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "bench", timed)
    model = apply_artv(model, subject.artv, subject.given()) if artv else model
    noise = torch.randn(rows, *subject.shape, generator=torch.Generator().manual_seed(2))
    words, steps = (subject.positive, subject.negative), rounds + 1
    sample.sample(model, noise, steps, 1.0, "euler", "normal", *words, torch.zeros_like(noise), disable_pbar=True)
    return min(spent[1:])


def sd21(args: argparse.Namespace) -> dict[str, float]:
    subject = sd21_subject(torch.float32, args.pixels)
    plain, whole = [], []
    for _ in range(args.rounds):
        plain.append(one_forward(subject, 1, 1, artv=False))
        whole.append(one_forward(subject, 1, 1, artv=True))
        print(f"Stable Diffusion 2.1: plain {plain[-1]:.2f} s, with ART-V {whole[-1]:.2f} s", flush=True)
    seconds = {"seconds_plain_sd21": min(plain), "seconds_sd21": min(whole)}
    figures = {"over_plain_sd21": min(whole) / min(plain), **seconds}
    return figures | ratios(subject, max(1, args.rounds - 1), 2, "_sd21")


def table_3(subject: Subject, sizes: Sequence[int], frames: int, rounds: int) -> dict[str, dict[int, float]]:
    """Batches a second, and gigabytes where there is a GPU to tell them, of `frames` in one forward at each size."""
    rates, memory_gb = {}, {}
    for pixels in sizes:
        sized = replace(subject, shape=(subject.shape[0], pixels // 8, pixels // 8))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        rates[pixels] = 1 / one_forward(sized, frames, rounds, artv=True)
        memory_gb[pixels] = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        told = TABLE_3.get(pixels, (float("nan"),) * 2)
        print(
            f"{pixels} px: {rates[pixels]:.2f} batches/s, {memory_gb[pixels]:.2f} GB; in the paper {told[0]}, {told[1]}"
        )
    return {"batches_per_second": rates, "memory_gb": memory_gb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=5, help="that are timed")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 1024], help="frames of the job, rising")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="of the pocket's runs with and without cache")
    parser.add_argument("--pixels", type=int, default=320, help="of a side, at the sizes of Stable Diffusion 2.1")
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
