"""How fast is a render planned, and how soon does Cancel end the planning?

Keys: `clips_per_second`: clips of a new job that are planned in a second; `plan_seconds`: all `--clips` of them;
`story_seconds`: a story of `--lines` prompts, read and planned frame by frame; `plan_cpu_seconds`, `story_cpu_seconds`:
the processor time of the same, which other work on the machine changes little; `cancel_seconds`: the longest time
between two looks at Cancel, in both of these, in reading the story, and in checking the clips of a job on the disk.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from ...model_patches.artv.story import anchor_of, parse_story
from ...rendering.formats import check_format
from ...rendering.job import LATENTS, STATE, Job, Record, open_job
from ...rendering.planning import Output, plan
from ..common.report import finish


class Looks:
    """Measures the time between two looks at Cancel, in seconds."""

    def __init__(self) -> None:
        self.longest, self.newest = 0.0, time.perf_counter()

    def __call__(self) -> None:
        now = time.perf_counter()
        self.longest, self.newest = max(self.longest, now - self.newest), now

    def time(self, work: Callable[[], object]) -> tuple[float, float]:
        """Wall time and processor time of a piece of work, in seconds. Its beginning and end count as looks."""
        start, before = time.perf_counter(), time.process_time()
        self.newest = start
        work()
        self()
        return time.perf_counter() - start, time.process_time() - before


def output(unit: str = "clip", frames: int = 16) -> Output:
    return Output(check_format("h264-mp4", 64, 64), Fraction(8), frames, {}, unit=unit)


def story_inputs(text: str) -> tuple[int, Callable[[int], str]]:
    """The frames of a story, and the inputs of each, as the Autoregressive Video node has them."""
    story = parse_story(text)
    return story.frames, lambda frame: f"{story.text(frame)} {anchor_of(frame, story)}"


def plan_story(job: Job, text: str, looks: Looks) -> None:
    frames, inputs = story_inputs(text)
    looks()
    plan(job, frames, output("frame", 1), {}, inputs, looks)


def write_clips(job: Job, count: int, megabytes: int) -> None:
    """Recorded clips with files of this size, to be checked."""
    for clip in range(count):
        job.clip_folder(clip).mkdir(parents=True)
        paths = [job.path(clip, LATENTS), job.path(clip, STATE), output().segment(job, clip)]
        for path in paths:
            path.write_bytes(bytes(megabytes * 2**20))
        job.write_record(clip, Record(files=job.sums(paths)))


def measure(root: Path, args: argparse.Namespace) -> dict[str, float]:
    looks = Looks()
    with open_job(root, "empty", {}) as (job, _):
        clips, clips_cpu = looks.time(lambda: plan(job, args.clips, output(), {}, lambda _clip: "", looks))
        text = "\n".join(f"a ball rolls to place {i}" for i in range(args.lines))
        story, story_cpu = looks.time(lambda: plan_story(job, text, looks))
    with open_job(root, "whole", {}) as (job, _):
        write_clips(job, 3, args.mb)
        looks.time(lambda: plan(job, 3, output(), {}, lambda _clip: "", looks))
    figures = {"plan_seconds": clips, "plan_cpu_seconds": clips_cpu, "story_seconds": story}
    figures |= {"story_cpu_seconds": story_cpu, "cancel_seconds": looks.longest}
    return {"clips_per_second": round(args.clips / clips), **{name: round(v, 3) for name, v in figures.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--lines", type=int, default=10_000, help="prompts of the story, 16 frames each")
    parser.add_argument("--mb", type=int, default=64, help="size of each file of a clip on the disk, in MB")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        finish("plan", measure(Path(folder), args))


if __name__ == "__main__":
    main()
