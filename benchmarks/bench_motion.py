"""Do the temporal layers move the sprite as the prompt says, and hold everything else? 16 frames, held-out prompts.

Keys: `direction` (share of moving prompts whose sprite goes there; chance 0.25), `still_ratio` (displacement under
"still" prompts over that under moving ones), `difference_ratio` (frame difference with the layers over that of the same
model without them, same noise), `constancy` (share of clips that show one colour and one shape in all frames),
`agreement` (mean share of frames like the clip's majority), `truth_direction` and `truth_constancy` (the same
measurement on rendered clips), and what the frames obey.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from ..evaluation.clips import ClipReading, read_clip
from ..evaluation.judge import load_judge
from ..evaluation.prompts import MOVING, direction_score, mean, obeyed, still_ratio
from ..training.data import sprites
from .bench_pocket import wanted
from .pocket_host import JUDGE, MOTION, POCKET, PocketHost, held_out
from .report import finish

MOTIONS = ("right", "left", "up", "down", "still")
FRAMES = 16


def measure(
    files: dict[str, Path], count: int, first: int, seed: int, without: int
) -> tuple[list[ClipReading], list[float], list[ClipReading]]:
    """Readings of the clips, frame differences of the first `without` on the plain model, readings of the truth."""
    torch.set_num_threads(1)
    host, judge = PocketHost(files["pocket"]), load_judge(files["judge"])
    model, readings, plain, truth = host.motion(files["motion"], frames=FRAMES), [], [], []
    begun = time.monotonic()
    for i, clip in enumerate(held_out(count, motions=MOTIONS, first=first)):
        text = [sprites.caption(clip)]
        frames = host.decode(host.sample(model, text, frames=FRAMES, seed=seed + first + i))
        readings.append(read_clip(judge, frames))
        truth.append(read_clip(judge, sprites.render(clip, sprites.frame_times(FRAMES))))
        if i < without:
            still = host.decode(host.sample(host.model, text, frames=FRAMES, seed=seed + first + i))
            plain.append(read_clip(judge, still).difference)
        print(f"clip {first + i + 1}: {time.monotonic() - begun:.0f} s", flush=True)
    return readings, plain, truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--without", type=int, default=40, help="clips also made without temporal layers")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    for name, path in (("pocket", POCKET), ("motion", MOTION), ("judge", JUDGE)):
        parser.add_argument(f"--{name}", type=Path, default=path)
    args = parser.parse_args()
    files = {"pocket": args.pocket, "motion": args.motion, "judge": args.judge}
    share = -(-args.prompts // args.processes)
    parts = [(min(share, args.prompts - i), i) for i in range(0, args.prompts, share)]
    with ProcessPoolExecutor(len(parts), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(measure, files, n, i, args.seed, -(-args.without // len(parts))) for n, i in parts]
        done = [job.result() for job in jobs]
    readings = [r for part, _, _ in done for r in part]
    truth = [r for _, _, part in done for r in part]
    plain = [d for _, part, _ in done for d in part]
    paired = [r.difference for part, without, _ in done for r in part[: len(without)]]
    clips = held_out(args.prompts, motions=MOTIONS)
    figures = scores(clips, readings, truth) | {"difference_ratio": mean(paired) / mean(plain)}
    finish("motion", {k: round(v, 4) for k, v in figures.items()} | {"prompts": len(clips)})


def scores(clips: list[sprites.Clip], readings: list[ClipReading], truth: list[ClipReading]) -> dict[str, float]:
    motions, labels = [c.motion for c in clips], [wanted(c) for c in clips]
    for motion in MOVING:
        went = [str(r.direction) for r, m in zip(readings, motions, strict=True) if m == motion]
        print(f"{motion:>6}: went " + ", ".join(f"{d} {went.count(d)}" for d in sorted(set(went))))
    return {
        "direction": direction_score(readings, motions),
        "still_ratio": still_ratio(readings, motions),
        "constancy": mean([r.constant for r in readings]),
        "agreement": mean([r.agreement for r in readings]),
        "colour": obeyed([r.colours for r in readings], [w[0] for w in labels]),
        "shape": obeyed([r.shapes for r in readings], [w[1] for w in labels]),
        "background": obeyed([r.backgrounds for r in readings], [w[2] for w in labels]),
        "truth_direction": direction_score(truth, motions),
        "truth_still_ratio": still_ratio(truth, motions),
        "truth_constancy": mean([r.constant for r in truth]),
    }


if __name__ == "__main__":
    main()
