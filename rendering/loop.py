"""The render loop: it completes the missing parts of a job in order, and records each file once it is on the disk.

A clip is sampled from the state that the previous clip saved, so the frames depend on what is on the disk and not on
how often rendering was interrupted: a killed render resumes and gives the same frames.
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
from .segments import JoinedVideo, join, segment_writer, write_pictures

State = dict[str, Tensor]
DIGITS = 12
SAMPLING = 0.9  # share of the work on a clip; the rest is decoding and writing


class Watch:
    """Receives the reports of a render. This base class ignores them."""

    def remark(self, text: str) -> None:
        """Receive one sentence, which is also in the job's log."""

    def progress(self, progress: Progress) -> None:
        """Receive the progress, after every step and every few frames."""

    def check(self) -> None:
        """May raise an exception to stop the render; finished work is not lost."""


@dataclass(frozen=True)
class Work:
    """The functions that a render calls. They must be deterministic, whatever ran before.

    sample(clip, take, before, step): latents (n, ...) of a clip, counted from 0, and the state that the next one needs.
        before: the state of the previous clip, None for the first. step(share) reports progress from 0 to 1.
    decode(latents): the frames in parts, each (k, h, w, 3) uint8, n in total.
    inputs(clip): a text with the inputs of a clip that are not part of the job's identity. If it changes, that clip and
        all later ones are rendered again. It must not depend on the number of clips.
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


@dataclass
class Plan:
    """The work to do for a clip."""

    take: int
    inputs: str = ""
    sample: bool = False
    encode: bool = False
    damaged: tuple[str, ...] = ()

    @property
    def work(self) -> float:
        return SAMPLING * self.sample + (1 - SAMPLING) * self.encode


def plan(job: Job, clips: int, output: Output, takes: Mapping[int, int], inputs: Callable[[int], str]) -> list[Plan]:
    """The work to do for each clip: what is incomplete, or has another take than requested. Clips that are not in
    `takes` keep their take. inputs: see Work.

    A dropped state is only sampled again if a later clip must be sampled. RenderError for a take of a clip that is not
    in the video.
    """
    if beyond := [clip + 1 for clip in takes if not 0 <= clip < clips]:
        raise RenderError(
            f"render: clip {beyond[0]} cannot be rendered again, because the video has clips 1 to {clips}; choose one "
            "of these"
        )
    hashes = chain_hashes(clips, inputs)
    plans, state_needed = [], False
    for clip in reversed(range(clips)):
        record = job.record(clip)
        take = takes.get(clip, record.take)
        stored = {path: job.state_of(record, path) for path in (job.path(clip, LATENTS), job.path(clip, STATE))}
        outputs = {
            path: job.state_of(record, path) for path in (output.segment(job, clip), *output.pictures(job, clip))
        }
        latents, state = stored.values()
        same = take == record.take and hashes[clip] == record.inputs
        sample = not same or latents != "whole" or state in {"damaged", "missing"}
        sample = sample or (state_needed and state == "dropped")
        encode = not same or any(state_name != "whole" for state_name in outputs.values())
        damaged = tuple(job.key(path) for path, state_name in (stored | outputs).items() if state_name == "damaged")
        plans.append(Plan(take, hashes[clip], sample, encode, damaged))
        state_needed = sample
    return plans[::-1]


def chain_hashes(clips: int, inputs: Callable[[int], str]) -> list[str]:
    """For every clip, a hash of its inputs and those of all previous clips; "" as long as they are empty."""
    hashes, previous = [], ""
    for clip in range(clips):
        text = inputs(clip)
        previous = hashlib.sha256(f"{previous} {text}".encode()).hexdigest()[:DIGITS] if text or previous else ""
        hashes.append(previous)
    return hashes


def render(
    job: Job,
    clips: int,
    work: Work,
    output: Output,
    *,
    takes: Mapping[int, int] | None = None,
    watch: Watch | None = None,
) -> Path:
    """Render a video of `clips` clips and return its path; complete files are not rendered again.

    takes: clip, counted from 0 -> take, for clips that should have another take. Raises DiskFullError,
    NotWritableError, and any error of `work`; the next call then resumes from there.
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
            path = self._join()
            self.growing.unlink(missing_ok=True)
        return path

    @property
    def growing(self) -> Path:
        return self.job.folder / f"growing{self.output.kind.suffix}"

    def remark(self, text: str) -> None:
        self.job.log(text)
        self.watch.remark(text)

    def _clips(self) -> None:
        """Render the clips. The growing file gets all clips in order, including those of earlier runs."""
        with ExitStack() as stack:
            growing = JoinedVideo(
                self.growing, self.output.kind, self.output.fps, live=True, metadata=self.output.metadata
            )
            stack.callback(growing.close)
            for clip, p in enumerate(self.plans):
                self.clip = clip
                self._clip(clip, p)
                growing.add(self.output.segment(self.job, clip))

    def _clip(self, clip: int, p: Plan) -> None:
        self.watch.check()
        start, work = self.done, p.work
        if p.sample and self._sample(clip, Record(p.take, inputs=p.inputs)):
            p.encode = True
        self.done = start + SAMPLING * p.sample
        if p.encode:
            self._encode(clip)
        self.done = start + work

    def _sample(self, clip: int, new: Record) -> bool:
        """Sample and store a clip; True if its latents changed. new: the clip's record without files."""
        job, start, old = self.job, self.done, self.job.record(clip)
        same = (old.take, old.inputs) == (new.take, new.inputs)
        if old.take != new.take or (old.files and not same):
            job.write_record(clip, new)
        job.log(f"{self.output.unit} {clip + 1} is sampled" + (f", take {new.take}" if new.take else ""))
        before = job.read_tensors(clip - 1, STATE) if clip else None
        latents, state = self.work.sample(clip, new.take, before, lambda share: self._report(start + SAMPLING * share))
        paths = [job.write_tensors(clip, STATE, state), job.write_tensors(clip, LATENTS, latents_of(latents))]
        changed = not same or old.files.get(job.key(paths[1])) != checksum(paths[1])
        # files from other latents are no longer valid
        job.write_record(clip, replace(new, files=({} if changed else old.files) | job.sums(paths)))
        return changed

    def _encode(self, clip: int) -> None:
        job, output, start = self.job, self.output, self.done
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
                self._report(start + (1 - SAMPLING) * count / len(latents), with_strip=True)
        job.add_to_record(clip, [path, *pictures])

    def _report(self, done: float, *, with_strip: bool = False) -> None:
        total = self.clock.work or 1.0
        share = min(1.0, 1 - (total - done) / self.clips)
        progress = Progress(self.clip + 1, self.clips, share, self.clock.seconds_left(done), unit=self.output.unit)
        self.watch.progress(replace(progress, strip=self.strip.draw(str(progress))) if with_strip else progress)

    def _join(self) -> Path:
        """The path of the video, which is joined again if it is incomplete or has other segments."""
        job, output = self.job, self.output
        path, record = output.video(job), job.folder / "video.json"
        digest = hashlib.sha256(
            "".join(job.record(c).files[job.key(output.segment(job, c))] for c in range(self.clips)).encode()
        ).hexdigest()
        with suppress(OSError, ValueError, KeyError, TypeError):
            old = json.loads(record.read_text(encoding="utf-8"))
            if old["made_of"] == digest and old["sum"] == checksum(path):
                return path
        segments = (output.segment(job, clip) for clip in range(self.clips))
        count = join(segments, path, output.kind, output.fps, output.metadata)
        write_text(json.dumps({"made_of": digest, "sum": checksum(path), "frames": count}), record)
        clips = "" if output.unit == "frame" else f"{self.clips} {output.unit}s, "
        self.remark(f"{path.name} has {clips}{count} frames")
        return path


def parse_takes(text: str) -> dict[int, int]:
    """ "7, 9:2" -> {6: 1, 8: 2}: clips, counted from 1, and the take of each; 0 is the first take.

    RenderError for any other text.
    """
    takes = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        clip, _, take = (part.strip() for part in entry.partition(":"))
        if not clip.isdecimal() or int(clip) < 1 or (take and not take.isdecimal()):
            raise RenderError(
                f'render again: clips contains {entry!r}; write clips, counted from 1, as "7" or "7, 9", "7:2" for '
                'take 2 of clip 7, or "7:0" for its first take'
            )
        takes[int(clip) - 1] = int(take) if take else 1
    return takes


def latents_of(latents: Tensor) -> State:
    return {"latents": latents}


def _sweep(folder: Path) -> None:
    """Delete partial files of killed processes. The job is locked, so no other process uses them."""
    for pattern in (".*.partial", "clips/*/.*.partial", "frames/.*.partial"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
