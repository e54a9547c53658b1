"""Which clips of a job must be sampled or encoded. Planning is linear in the clips, and is cancelled at once."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from .errors import RenderError
from .formats import Format
from .job import LATENTS, STATE, Job

DIGITS = 12
SAMPLING = 0.9  # share of the work on a clip; the rest is decoding and writing
MAX_CLIPS, MAX_FRAMES = 1_000_000, 16_000_000  # of a video; a frame that is a clip of its own counts as a clip
LOOK_EVERY = 256  # clips between two looks at Cancel
T = TypeVar("T")
Look = Callable[[], None]  # may raise an exception to stop


@dataclass(frozen=True)
class Output:
    kind: Format
    fps: Fraction
    frames: int  # of a clip
    metadata: Mapping[str, Any]
    unit: str = "clip"  # the word for a clip in messages
    doubled: int = 0  # frames by which every clip but the first is shorter

    def first(self, clip: int) -> int:
        """Number of frames of the video before a clip."""
        return clip * self.frames - self.doubled * max(0, clip - 1)

    def segment(self, job: Job, clip: int) -> Path:
        return job.path(clip, f"segment{self.kind.suffix}")

    def video(self, job: Job) -> Path:
        return job.folder / f"{job.name}{self.kind.suffix}"

    def pictures(self, job: Job, clip: int) -> list[Path]:
        places = range(self.first(clip) + 1, self.first(clip + 1) + 1) if self.kind.pictures else ()
        return [job.folder / "frames" / f"{i:06}.{self.kind.pictures}" for i in places]


@dataclass(frozen=True, slots=True)
class Plan:
    """The work to do for a clip. New clips with equal inputs have one in common."""

    take: int
    inputs: str = ""
    sample: bool = False
    encode: bool = False
    damaged: tuple[str, ...] = ()

    @property
    def work(self) -> float:
        return SAMPLING * self.sample + (1 - SAMPLING) * self.encode


def check_length(clips: int, output: Output) -> None:
    """RenderError for a video that is longer than one job can be."""
    for count, unit, most in ((clips, output.unit, MAX_CLIPS), (output.first(clips), "frame", MAX_FRAMES)):
        if count > most:
            raise RenderError(
                f"render: the video would have {count:,} {unit}s, but one job can have at most {most:,}; make it "
                "shorter, or render it as several jobs"
            )


def plan(
    job: Job,
    clips: int,
    output: Output,
    takes: Mapping[int, int],
    inputs: Callable[[int], str],
    look: Look = lambda: None,
) -> list[Plan]:
    """The work to do for each clip: what is incomplete, or has another take than requested. Clips that are not in
    `takes` keep their take. inputs: see Work. look: is called often enough to stop within half a second.

    A dropped state is only sampled again if a later clip must be sampled. RenderError for a take of a clip that is not
    in the video.
    """
    check_length(clips, output)
    if beyond := [clip + 1 for clip in takes if not 0 <= clip < clips]:
        raise RenderError(
            f"render: clip {beyond[0]} cannot be rendered again, because the video has clips 1 to {clips}; choose one "
            "of these"
        )
    hashes = chain_hashes(clips, inputs, look)
    recorded = set(job.finished())
    plans, state_needed, new = [], False, Plan(0, "", True, True)
    for clip in watched(reversed(range(clips)), look):
        if clip in recorded:
            look()
            step = _recorded(job, clip, output, takes.get(clip), hashes[clip], state_needed, look)
        else:
            if (new.take, new.inputs) != (takes.get(clip, 0), hashes[clip]):
                new = Plan(takes.get(clip, 0), hashes[clip], True, True)
            step = new
        plans.append(step)
        state_needed = step.sample
    return plans[::-1]


def _recorded(
    job: Job, clip: int, output: Output, take: int | None, inputs: str, state_needed: bool, look: Look
) -> Plan:
    """The work to do for a clip that has a record. state_needed: whether the next clip must be sampled."""
    record = job.record(clip)
    take = record.take if take is None else take
    stored = {path: job.state_of(record, path, look) for path in (job.path(clip, LATENTS), job.path(clip, STATE))}
    files = (output.segment(job, clip), *output.pictures(job, clip))
    outputs = {path: job.state_of(record, path, look) for path in files}
    latents, state = stored.values()
    same = take == record.take and inputs == record.inputs
    sample = not same or latents != "whole" or state in {"damaged", "missing"}
    sample = sample or (state_needed and state == "dropped")
    encode = not same or any(state_name != "whole" for state_name in outputs.values())
    damaged = tuple(job.key(path) for path, state_name in (stored | outputs).items() if state_name == "damaged")
    return Plan(take, inputs, sample, encode, damaged)


def chain_hashes(clips: int, inputs: Callable[[int], str], look: Look = lambda: None) -> list[str]:
    """For every clip, a hash of its inputs and those of all previous clips; "" as long as they are empty."""
    hashes, previous = [], ""
    for clip in watched(range(clips), look):
        text = inputs(clip)
        previous = hashlib.sha256(f"{previous} {text}".encode()).hexdigest()[:DIGITS] if text or previous else ""
        hashes.append(previous)
    return hashes


def watched(items: Iterable[T], look: Look, every: int = LOOK_EVERY) -> Iterator[T]:
    """The items, with a look at Cancel every few of them."""
    for i, item in enumerate(items):
        if not i % every:
            look()
        yield item
