"""Do the temporal layers move the sprite as the prompt says, and hold everything else? 16 frames, held-out prompts.

Keys: `direction` (share of moving prompts whose sprite goes there; chance 0.25), `still_ratio` (displacement under
"still" prompts over that under moving ones), `difference_ratio` (frame difference with the layers over that of the same
model without them, same noise), `constancy` (share of clips that show one colour and one shape in all frames),
`agreement` (mean share of frames like the clip's majority), `difference` and `flicker` (mean absolute first and second
difference over time), `pocket_fvd` (Frechet distance of the pocket's own video judge), and what the frames obey.
`truth_...` are the same scores of rendered clips, `intervals` the 95 % bootstrap intervals over the clips.
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
from ...evaluation.scores.score import MOVING, Sample, joined, score
from ...evaluation.scores.statistics import Interval
from ...training.ablations.jobs import MOTIONS
from ...training.data import sprites
from ...training.metrics import judging
from ..common.pocket_host import JUDGE, MOTION, POCKET, VIDEO_JUDGE, PocketHost
from ..common.report import finish


def measure(
    files: dict[str, Path], count: int, first: int, seed: int, without: int
) -> tuple[Sample, list[float], Sample]:
    """The clips as the judges see them, frame differences of the first `without` on the plain model, and the truth."""
    torch.set_num_threads(1)
    host, judge, (video_judge, _) = (
        PocketHost(files["pocket"]),
        load_judge(files["judge"]),
        load_video_judge(VIDEO_JUDGE),
    )
    model, plain, begun = host.motion(files["motion"], frames=FRAMES), [], time.monotonic()
    prompts = sprites.held_out(count, motions=MOTIONS, first=first)

    def clips():
        for i, prompt in enumerate(prompts):
            text = [sprites.caption(prompt)]
            yield host.decode(host.sample(model, text, frames=FRAMES, seed=seed + first + i))
            if i < without:
                still = host.decode(host.sample(host.model, text, frames=FRAMES, seed=seed + first + i))
                plain.append(frame_difference(still))
            print(f"clip {first + i + 1}: {time.monotonic() - begun:.0f} s", flush=True)

    made = judging.sample(clips(), prompts, judge, video_judge)
    return made, plain, judging.sample(judging.rendered(prompts), prompts, judge, video_judge)


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
    made, truth = joined([part for part, _, _ in done]), joined([part for _, _, part in done])
    plain = [d for _, part, _ in done for d in part]
    paired = [r.difference for part, without, _ in done for r in part.readings[: len(without)]]
    real = judging.reference(load_video_judge(VIDEO_JUDGE)[0], motions=MOTIONS, after=args.prompts)
    print_directions(made)
    figures = report(score(made, real), score(truth, real))
    ratio = sum(paired) / len(paired) / (sum(plain) / len(plain)) if plain else float("nan")
    finish("motion", {**figures, "difference_ratio": round(ratio, 4), "prompts": args.prompts})


def print_directions(made: Sample) -> None:
    for motion in MOVING:
        went = [str(r.direction) for r, w in zip(made.readings, made.wanted, strict=True) if w.motion == motion]
        print(f"{motion:>6}: went " + ", ".join(f"{d} {went.count(d)}" for d in sorted(set(went))))


def report(made: dict[str, Interval], truth: dict[str, Interval]) -> dict:
    return {
        **{name: round(found.value, 4) for name, found in made.items()},
        "intervals": {name: [round(found.low, 4), round(found.high, 4)] for name, found in made.items()},
        **{f"truth_{name}": round(found.value, 4) for name, found in truth.items()},
    }


if __name__ == "__main__":
    main()
