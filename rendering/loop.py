"""The render loop: it completes the missing parts of a job in order, and records each file once it is on the disk.

A clip is sampled from the state that the previous clip saved, so the frames depend on what is on the disk and not on
how often rendering was interrupted: a killed render resumes and gives the same frames.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ..model_patches.files import read_json, write_text
from .errors import RenderError, storage
from .job import LATENTS, STATE, Job, Record, checksum
from .planning import SAMPLING, Look, Output, Plan, check_length, plan, watched
from .preview import Clock, Progress, Strip
from .segments import JoinedVideo, join, segment_writer, write_pictures

State = dict[str, Tensor]
DIGITS = 9  # of the largest number of a clip or take


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
        check_length(clips, output)
        with storage(job.folder):
            _sweep(job.folder, self.watch.check)
            self.plans = plan(job, clips, output, takes, work.inputs, self.watch.check)
        self.clock, self.done = Clock(sum(p.work for p in watched(self.plans, self.watch.check))), 0.0
        self.clip, self.strip = 0, Strip()
        for clip, p in enumerate(watched(self.plans, self.watch.check)):
            for name in p.damaged:
                again = "rendered" if p.sample else "written"
                self.remark(f"{name} is damaged; {output.unit} {clip + 1} is {again} again")

    def video(self) -> Path:
        with storage(self.job.folder):
            if any(p.work for p in self.plans):
                self._clips()
            path = self._join()
        with suppress(PermissionError):  # Windows does not delete a file that a player has open
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
            growing = self._open_growing(stack)
            for clip, p in enumerate(self.plans):
                self.clip = clip
                self._clip(clip, p)
                if growing is not None:
                    growing.add(self.output.segment(self.job, clip))

    def _open_growing(self, stack: ExitStack) -> JoinedVideo | None:
        """The growing file; None where it cannot be replaced, as on Windows while a player has it open."""
        output = self.output
        try:
            growing = JoinedVideo(self.growing, output.kind, output.fps, live=True, metadata=output.metadata)
        except PermissionError:
            self.remark(f"{self.growing.name} is open in another program, so it does not show this render")
            return None
        stack.callback(growing.close)
        return growing

    def _clip(self, clip: int, p: Plan) -> None:
        self.watch.check()
        start = self.done
        changed = p.sample and self._sample(clip, Record(p.take, inputs=p.inputs))
        self.done = start + SAMPLING * p.sample
        if p.encode or changed:
            self._encode(clip)
        self.done = start + p.work

    def _sample(self, clip: int, new: Record) -> bool:
        """Sample and store a clip; True if its latents changed. new: the clip's record without files."""
        job, start, old = self.job, self.done, self.job.record(clip)
        same = (old.take, old.inputs) == (new.take, new.inputs)
        if old.take != new.take or (old.files and not same):
            job.write_record(clip, new)
        job.log(f"{self.output.unit} {clip + 1} is sampled" + (f", take {new.take}" if new.take else ""))
        before = job.read_tensors(clip - 1, STATE) if clip else None
        latents, state = self.work.sample(clip, new.take, before, lambda share: self._report(start + SAMPLING * share))
        self._check_finite(clip, {**state, **latents_of(latents)})
        paths = [job.write_tensors(clip, STATE, state), job.write_tensors(clip, LATENTS, latents_of(latents))]
        changed = not same or old.files.get(job.key(paths[1])) != checksum(paths[1])
        # files from other latents are no longer valid
        job.write_record(clip, replace(new, files=({} if changed else old.files) | job.sums(paths)))
        return changed

    def _check_finite(self, clip: int, tensors: State) -> None:
        """RenderError before a clip is recorded that is no picture. A recorded clip would never be rendered again."""
        if any(value.is_floating_point() and not value.isfinite().all() for value in tensors.values()):
            unit = self.output.unit
            raise RenderError(
                f"render: {unit} {clip + 1} contains NaN or infinite values; the {unit}s before it are saved. "
                "Lower the guidance scales, choose another sampler, or run ComfyUI with --force-fp32"
            )

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
        look = self.watch.check
        sums = (self._segment_sum(clip) for clip in watched(range(self.clips), look))
        digest = hashlib.sha256("".join(sums).encode()).hexdigest()
        with suppress(OSError, ValueError, KeyError, TypeError):
            old = read_json(record)
            if old["made_of"] == digest and old["sum"] == checksum(path, look):
                return path
        segments = (output.segment(job, clip) for clip in watched(range(self.clips), look, every=1))
        count = join(segments, path, output.kind, output.fps, output.metadata)
        write_text(json.dumps({"made_of": digest, "sum": checksum(path, look), "frames": count}), record)
        clips = "" if output.unit == "frame" else f"{self.clips} {output.unit}s, "
        self.remark(f"{path.name} has {clips}{count} frames")
        return path

    def _segment_sum(self, clip: int) -> str:
        """The recorded checksum of a clip's segment."""
        job = self.job
        try:
            return job.record(clip).files[job.key(self.output.segment(job, clip))]
        except KeyError as error:
            raise RenderError(
                f"render: {job.clip_folder(clip)} was removed or changed during the render; queue again: what is "
                "still there is not rendered again"
            ) from error


def parse_takes(text: str) -> dict[int, int]:
    """ "7, 9:2" -> {6: 1, 8: 2}: clips, counted from 1, and the take of each; 0 is the first take.

    RenderError for any other text.
    """
    takes = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        clip, _, take = (part.strip() for part in entry.partition(":"))
        is_number = clip.isdecimal() and len(clip) <= DIGITS and int(clip) >= 1
        if not is_number or (take and not (take.isdecimal() and len(take) <= DIGITS)):
            raise RenderError(
                f'render again: clips contains {entry[:100]!r}; write clips, counted from 1, as "7" or "7, 9", "7:2" '
                'for take 2 of clip 7, or "7:0" for its first take'
            )
        takes[int(clip) - 1] = int(take) if take else 1
    return takes


def latents_of(latents: Tensor) -> State:
    return {"latents": latents}


def _sweep(folder: Path, look: Look) -> None:
    """Delete partial files of killed processes. The job is locked, so no other process uses them."""
    for pattern in (".*.partial", "clips/*/.*.partial", "frames/.*.partial"):
        for path in watched(folder.glob(pattern), look):
            path.unlink(missing_ok=True)
