"""The render itself: what of a job is not whole is made, in order, and every file is on the disk before it counts.

A clip is sampled from the state that the clip before left, so the frames depend on what is on the disk, not on how
often the render was stopped in between: a killed render goes on to the same frames.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..model_patches.files import write_text
from .errors import RenderError, storage
from .formats import Format
from .job import LATENTS, STATE, Job, Record, checksum
from .preview import Clock, Progress, Strip
from .segments import Joined, join, segment_writer, write_pictures

State = dict[str, Tensor]
DIGITS = 12
SAMPLING = 0.9  # of the work on a clip; the rest is decoding and writing


class Watch:
    """Whom a render tells what it does. This one is not interested."""

    def remark(self, text: str) -> None:
        """One sentence, also in the job's log."""

    def progress(self, progress: Progress) -> None:
        """After every step and every few frames."""

    def check(self) -> None:
        """Raises what shall stop the render: nothing that was finished is lost."""


@dataclass(frozen=True)
class Work:
    """What the render is made with.

    sample(clip, take, before, step): latents (n, ...) of a clip, counted from 0, and the state that the next one needs.
        before: the state after the clip before, None for the first. step(share) is called as it goes, 0 to 1.
    decode(latents): the frames in parts, each (k, h, w, 3) uint8, n in all.
    inputs(clip): what a clip depends on beside the job's identity. When it is another than it was, that clip and all
        after it are made anew. It must not depend on how many clips there are.

    All give the same for the same, whatever ran before.
    """

    sample: Callable[[int, int, State | None, Callable[[float], None]], tuple[Tensor, State]]
    decode: Callable[[Tensor], Iterator[np.ndarray]]
    inputs: Callable[[int], str] = lambda _clip: ""


@dataclass(frozen=True)
class Output:
    kind: Format
    fps: Fraction
    frames: int  # of a clip
    metadata: Mapping[str, Any]
    unit: str = "clip"  # what is told of one
    doubled: int = 0  # frames that every clip but the first has less

    def first(self, clip: int) -> int:
        """Frames of the video before a clip."""
        return clip * self.frames - self.doubled * max(0, clip - 1)

    def segment(self, job: Job, clip: int) -> Path:
        return job.path(clip, f"segment{self.kind.suffix}")

    def video(self, job: Job) -> Path:
        return job.folder / f"{job.name}{self.kind.suffix}"

    def pictures(self, job: Job, clip: int) -> list[Path]:
        places = range(self.first(clip) + 1, self.first(clip + 1) + 1) if self.kind.pictures else ()
        return [job.folder / "frames" / f"{i:06}.{self.kind.pictures}" for i in places]


@dataclass
class Plan:
    """What has to be done for a clip."""

    take: int
    inputs: str = ""
    sample: bool = False
    encode: bool = False
    damaged: tuple[str, ...] = ()

    @property
    def work(self) -> float:
        return SAMPLING * self.sample + (1 - SAMPLING) * self.encode


def plan(job: Job, clips: int, output: Output, takes: Mapping[int, int], inputs: Callable[[int], str]) -> list[Plan]:
    """What of the clips is not whole, or is another take than asked for. Clips that `takes` leaves out keep theirs.
    inputs: see Work.

    A state that was dropped is made anew only when a clip after it must be sampled. RenderError for a take of a clip
    that the video has not.
    """
    if beyond := [clip + 1 for clip in takes if not 0 <= clip < clips]:
        raise RenderError(f"render: clip {beyond[0]} shall be rendered again, but the video has clips 1 to {clips}")
    words = chained(clips, inputs)
    plans, state_needed = [], False
    for clip in reversed(range(clips)):
        record = job.record(clip)
        take = takes.get(clip, record.take)
        told = {path: job.state_of(record, path) for path in (job.path(clip, LATENTS), job.path(clip, STATE))}
        shown = {path: job.state_of(record, path) for path in (output.segment(job, clip), *output.pictures(job, clip))}
        latents, state = told.values()
        same = take == record.take and words[clip] == record.inputs
        sample = not same or latents != "whole" or state in {"damaged", "missing"}
        sample = sample or (state_needed and state == "dropped")
        encode = not same or any(word != "whole" for word in shown.values())
        damaged = tuple(job.key(path) for path, word in (told | shown).items() if word == "damaged")
        plans.append(Plan(take, words[clip], sample, encode, damaged))
        state_needed = sample
    return plans[::-1]


def chained(clips: int, inputs: Callable[[int], str]) -> list[str]:
    """For every clip a word of its own inputs and those of all before it; "" while they are."""
    words, before = [], ""
    for clip in range(clips):
        own = inputs(clip)
        before = hashlib.sha256(f"{before} {own}".encode()).hexdigest()[:DIGITS] if own or before else ""
        words.append(before)
    return words


def render(
    job: Job,
    clips: int,
    work: Work,
    output: Output,
    *,
    takes: Mapping[int, int] | None = None,
    watch: Watch | None = None,
) -> Path:
    """The path of the video of `clips` clips; whatever is whole already is not made again.

    takes: clip, counted from 0 -> its take, for those that shall be another one than they are. DiskFullError,
    NotWritableError, and whatever `work` raises; then the next call goes on from there.
    """
    return _Run(job, clips, work, output, takes or {}, watch or Watch()).video()


class _Run:
    def __init__(
        self, job: Job, clips: int, work: Work, output: Output, takes: Mapping[int, int], watch: Watch
    ) -> None:
        self.job, self.clips, self.work, self.output, self.watch = job, clips, work, output, watch
        _sweep(job.folder)
        self.plans = plan(job, clips, output, takes, work.inputs)
        self.clock, self.done = Clock(sum(p.work for p in self.plans)), 0.0
        self.clip, self.strip = 0, Strip()
        for clip, p in enumerate(self.plans):
            for name in p.damaged:
                again = "rendered" if p.sample else "written"
                self.remark(f"{name} is damaged; {output.unit} {clip + 1} is {again} again")

    def video(self) -> Path:
        with storage(self.job.folder):
            if any(p.work for p in self.plans):
                self._clips()
            path = self._joined()
            self.growing.unlink(missing_ok=True)
        return path

    @property
    def growing(self) -> Path:
        return self.job.folder / f"growing{self.output.kind.suffix}"

    def remark(self, text: str) -> None:
        self.job.log(text)
        self.watch.remark(text)

    def _clips(self) -> None:
        """The growing file has the clips in their order, those that were there before, too."""
        with ExitStack() as stack:
            growing = Joined(self.growing, self.output.kind, self.output.fps, live=True, metadata=self.output.metadata)
            stack.callback(growing.close)
            for clip, p in enumerate(self.plans):
                self.clip = clip
                self._clip(clip, p)
                growing.add(self.output.segment(self.job, clip))

    def _clip(self, clip: int, p: Plan) -> None:
        self.watch.check()
        begun, planned = self.done, p.work
        if p.sample and self._sampled(clip, Record(p.take, inputs=p.inputs)):
            p.encode = True
        self.done = begun + SAMPLING * p.sample
        if p.encode:
            self._encoded(clip)
        self.done = begun + planned

    def _sampled(self, clip: int, new: Record) -> bool:
        """Were the latents not those that the rest of the clip was made of? new: its record with nothing done."""
        job, begun, old = self.job, self.done, self.job.record(clip)
        same = (old.take, old.inputs) == (new.take, new.inputs)
        if old.take != new.take or (old.files and not same):
            job.write_record(clip, new)
        job.log(f"{self.output.unit} {clip + 1} is sampled" + (f", take {new.take}" if new.take else ""))
        before = job.read_tensors(clip - 1, STATE) if clip else None
        latents, state = self.work.sample(clip, new.take, before, lambda share: self._tell(begun + SAMPLING * share))
        paths = [job.write_tensors(clip, STATE, state), job.write_tensors(clip, LATENTS, latents_of(latents))]
        changed = not same or old.files.get(job.key(paths[1])) != checksum(paths[1])
        # what was made of other latents counts no more
        job.write_record(clip, replace(new, files=({} if changed else old.files) | job.sums(paths)))
        return changed

    def _encoded(self, clip: int) -> None:
        job, output, begun = self.job, self.output, self.done
        latents = job.read_tensors(clip, LATENTS)["latents"]
        path, pictures, count = output.segment(job, clip), [], 0
        with segment_writer(path, output.kind, output.fps) as writer:
            for frames in self.work.decode(latents):
                self.watch.check()
                writer.write(frames)
                if output.kind.pictures:
                    pictures += write_pictures(frames, job.folder / "frames", output.first(clip) + count, output.kind)
                if count <= output.frames // 2 < count + len(frames):
                    self.strip.add(frames[output.frames // 2 - count])
                count += len(frames)
                self._tell(begun + (1 - SAMPLING) * count / len(latents), shown=True)
        job.recorded(clip, [path, *pictures])

    def _tell(self, done: float, *, shown: bool = False) -> None:
        total = self.clock.work or 1.0
        share = min(1.0, 1 - (total - done) / self.clips)
        told = Progress(self.clip + 1, self.clips, share, self.clock.left(done), unit=self.output.unit)
        self.watch.progress(replace(told, strip=self.strip.draw(str(told))) if shown else told)

    def _joined(self) -> Path:
        """The video; joined anew when it is not whole, or was joined of other segments."""
        job, output = self.job, self.output
        path, record = output.video(job), job.folder / "video.json"
        made_of = hashlib.sha256(
            "".join(job.record(c).files[job.key(output.segment(job, c))] for c in range(self.clips)).encode()
        ).hexdigest()
        with suppress(OSError, ValueError, KeyError, TypeError):
            old = json.loads(record.read_text(encoding="utf-8"))
            if old["made_of"] == made_of and old["sum"] == checksum(path):
                return path
        segments = (output.segment(job, clip) for clip in range(self.clips))
        count = join(segments, path, output.kind, output.fps, output.metadata)
        write_text(json.dumps({"made_of": made_of, "sum": checksum(path), "frames": count}), record)
        clips = "" if output.unit == "frame" else f"{self.clips} {output.unit}s, "
        self.remark(f"{path.name} has {clips}{count} frames")
        return path


def parse_takes(text: str) -> dict[int, int]:
    """ "7, 9:2" -> {6: 1, 8: 2}: clips, counted from 1, and which take of each; the first again is 0.

    RenderError for anything else.
    """
    takes = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        clip, _, take = (word.strip() for word in entry.partition(":"))
        if not clip.isdecimal() or int(clip) < 1 or (take and not take.isdecimal()):
            raise RenderError(
                f'render again: clips has {entry!r}; write clips, counted from 1, as "7" or "7, 9", and "7:2" for a '
                'second other take, "7:0" for the first one again'
            )
        takes[int(clip) - 1] = int(take) if take else 1
    return takes


def latents_of(latents: Tensor) -> State:
    return {"latents": latents}


def _sweep(folder: Path) -> None:
    """Parts of files that a killed process left. The job is locked: they belong to nobody."""
    for pattern in (".*.partial", "clips/*/.*.partial", "frames/.*.partial"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
