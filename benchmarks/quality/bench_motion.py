"""Do the temporal layers move the sprite as prompted and keep everything else constant? 16 frames, held-out prompts.

Keys: `direction` (share of moving prompts whose sprite moves in the right direction; chance 0.25), `still_ratio`
(displacement for "still" prompts over that for moving ones), `difference_ratio` (frame difference with the layers over
that of the same model without them, same noise), `constancy` (share of clips with one colour and one shape in all
frames), `agreement` (mean share of frames that agree with the clip's majority), `difference` and `flicker` (mean
absolute first and second difference over time), `pocket_fvd` (Frechet distance in features of the pocket's own video
judge), and the shares of frames that match the prompt. `truth_...` are the same scores for rendered clips, `intervals`
the 95 % bootstrap intervals over the clips.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from ...evaluation.judges.judge import load_judge
from ...evaluation.judges.video_judge import FRAMES, load_video_judge
from ...evaluation.scores.clips import frame_difference
from ...evaluation.scores.score import MOVING, Sample, concatenate, score
from ...evaluation.scores.statistics import Interval
from ...training.ablations.jobs import MOTIONS
from ...training.data.worlds import named
from ...training.metrics import judging
from ..common.pocket_host import JUDGE, MOTION, POCKET, VIDEO_JUDGE, PocketHost
from ..common.report import finish


def measure(
    files: dict[str, Path], count: int, first: int, seed: int, without: int
) -> tuple[Sample, list[float], Sample]:
    """Judged clips, frame differences of the first `without` clips without temporal layers, and judged ground truth."""
    torch.set_num_threads(1)
    host, judge = PocketHost(files["pocket"]), load_judge(files["judge"])
    video_judge, _ = load_video_judge(files["video_judge"])
    world = named(judge.world)
    model, plain, start_time = host.motion(files["motion"], frames=FRAMES), [], time.monotonic()
    prompts = world.held_out(count, motions=MOTIONS, first=first)

    def clips():
        for i, prompt in enumerate(prompts):
            text = [world.caption(prompt)]
            yield host.decode(host.sample(model, text, frames=FRAMES, seed=seed + first + i))
            if i < without:
                still = host.decode(host.sample(host.model, text, frames=FRAMES, seed=seed + first + i))
                plain.append(frame_difference(still))
            print(f"clip {first + i + 1}: {time.monotonic() - start_time:.0f} s", flush=True)

    sample = judging.sample(clips(), prompts, judge, video_judge)
    return sample, plain, judging.sample(judging.rendered(prompts, world=world), prompts, judge, video_judge)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument(
        "--without", type=int, default=40, help="number of clips that are also made without temporal layers"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    for name, path in (("pocket", POCKET), ("motion", MOTION), ("judge", JUDGE), ("video-judge", VIDEO_JUDGE)):
        parser.add_argument(f"--{name}", type=Path, default=path)
    args = parser.parse_args()
    files = {"pocket": args.pocket, "motion": args.motion, "judge": args.judge, "video_judge": args.video_judge}
    share = -(-args.prompts // args.processes)
    parts = [(min(share, args.prompts - i), i) for i in range(0, args.prompts, share)]
    with ProcessPoolExecutor(len(parts), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(measure, files, n, i, args.seed, -(-args.without // len(parts))) for n, i in parts]
        results = [job.result() for job in jobs]
    sample, truth = concatenate([part for part, _, _ in results]), concatenate([part for _, _, part in results])
    plain = [d for _, part, _ in results for d in part]
    pairs = [r.difference for part, without, _ in results for r in part.readings[: len(without)]]
    real = judging.reference(load_video_judge(args.video_judge)[0], motions=MOTIONS, after=args.prompts)
    print_directions(sample)
    figures = report(score(sample, real), score(truth, real))
    ratio = sum(pairs) / len(pairs) / (sum(plain) / len(plain)) if plain else float("nan")
    finish("motion", {**figures, "difference_ratio": round(ratio, 4), "prompts": args.prompts})


def print_directions(sample: Sample) -> None:
    for motion in MOVING:
        moves = [str(r.direction) for r, w in zip(sample.readings, sample.prompts, strict=True) if w.motion == motion]
        print(f"{motion:>6}: moved " + ", ".join(f"{d} {moves.count(d)}" for d in sorted(set(moves))))


def report(scores: dict[str, Interval], truth: dict[str, Interval]) -> dict:
    return {
        **{name: round(interval.value, 4) for name, interval in scores.items()},
        "intervals": {name: [round(interval.low, 4), round(interval.high, 4)] for name, interval in scores.items()},
        **{f"truth_{name}": round(interval.value, 4) for name, interval in truth.items()},
    }


if __name__ == "__main__":
    main()
