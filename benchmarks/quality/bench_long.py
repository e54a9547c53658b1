"""Do memory use and speed stay constant in a long video? One job on the pocket, extended from length to length.

The job uses the parts of Long Video as in the graph `vidrd_long_video`: the bundled VidRD model and its temporal-aware
decoder.

Keys: `rss_slope_mb_per_frame` (slope of resident memory, least squares over the clips from the third on),
`fps_last_over_first` (speed in the last quarter of the clips over that in the first, without two warm-up clips),
`unet_frames_per_kept_frame`, `disk_mb_per_frame`. The table printed before them shows resident memory and time at each
length.
"""

import argparse
import os
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ...rendering.formats import check_format
from ...rendering.job import open_job
from ...rendering.loop import Output, Watch, Work, render
from ..common.pocket_host import DECODER, VIDRD, PocketHost
from ..common.report import finish

FRAMES, SIZE, WARM = 16, 64, 2
KEY = "stillmotion.bench_long"


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Meter(Watch):
    """Records time and memory at the end of every clip."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []  # seconds, MB

    def clip_done(self) -> None:
        self.ends.append((time.monotonic(), resident()))


class Counter:
    """A wrapper around the U-Net that counts the rows of its batches."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, executor, x, *args, **kwargs):
        self.rows += len(x)
        return executor(x, *args, **kwargs)


def slope(x: Tensor, y: Tensor) -> float:
    """Slope of the least-squares line through the points (x, y)."""
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / (x * x).sum()).item()


def long_video(args: argparse.Namespace, counter: Counter):
    host = PocketHost()
    from comfy.patcher_extension import WrappersMP

    from ...model_patches.comfy_host.video.long import LongVideo, make_guider
    from ...model_patches.comfy_host.vidrd.decoder import TemporalVAE, load_decoder
    from ...model_patches.vidrd.reuse import Config as ReuseConfig

    model, vae = host.motion(VIDRD, frames=FRAMES), TemporalVAE(host.vae, load_decoder(DECODER))
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, counter)
    positive, negative = host.condition(["a yellow star moving in a circle in the night sky"]), host.condition([""])
    guider = make_guider(model, positive, negative, 7.5)
    settings = {"sampler": "ddim", "scheduler": "normal", "steps": args.steps, "seed": args.seed, "frames": FRAMES}
    return LongVideo(guider, vae, **settings, size=(SIZE, SIZE), config=ReuseConfig())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024, 4096], help="frames, in rising order")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counter, meter = Counter(), Meter()
    long = long_video(args, counter)

    def decode(latents):
        for frames in long.decode(latents):
            yield frames.numpy()
        meter.clip_done()

    output = Output(check_format("h264-mp4", SIZE, SIZE), Fraction(8), FRAMES, {})
    print("frames  seconds  resident MB", flush=True)
    with tempfile.TemporaryDirectory() as root, open_job(Path(root), "bench", long.identity()) as (job, _):
        start_time = time.monotonic()
        for length in args.lengths:
            render(job, length // FRAMES, Work(long.sample, decode), output, watch=meter)
            print(f"{length:6} {time.monotonic() - start_time:8.1f} {resident():10.1f}", flush=True)
        size = sum(path.stat().st_size for path in job.folder.rglob("*") if path.is_file())
    finish("long", figures(meter, counter, args.steps) | {"disk_mb_per_frame": round(size / 1e6 / args.lengths[-1], 4)})


def figures(meter: Meter, counter: Counter, steps: int) -> dict[str, float]:
    clips = len(meter.ends)
    times, memory = torch.tensor(meter.ends, dtype=torch.float64).unbind(1)
    quarter = max(1, (clips - WARM) // 4)
    seconds = times.diff()[WARM - 1 :]
    frames = torch.arange(clips, dtype=torch.float64)[WARM:] * FRAMES
    return {
        "rss_slope_mb_per_frame": round(slope(frames, memory[WARM:]), 5),
        "fps_last_over_first": round((seconds[:quarter].median() / seconds[-quarter:].median()).item(), 3),
        "unet_frames_per_kept_frame": counter.rows / 2 / steps / (clips * FRAMES),  # 2: with and without the prompt
        "frames": clips * FRAMES,
    }


if __name__ == "__main__":
    main()
