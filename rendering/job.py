"""The folder of one render: what it is made of, and what of it is whole.

    ROOT/NAME-0123456789ab/         the hash is that of everything the frames depend on
        manifest.json               this identity, written once
        clips/00001/clip.json       which files of clip 1 are whole: their SHA-256; and its take
                    latents.safetensors, state.safetensors, segment.mp4
        frames/000001.png           only of picture formats
        growing.mp4                 while it renders: what there is so far
        NAME.mp4, video.json        the video, and of which segments it was joined
        log.txt                     what happened

A clip is recorded after its files are on the disk, so whatever is recorded can be trusted up to damage, which the sums
show. How many clips there shall be is no part of the identity: more clips go on where the folder ends.

A clip is rendered in takes: take 0 comes with the job, any other is a clip that was asked for again.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..model_patches.files import write_tensors, write_text
from .errors import OtherVersionError, RenderError, storage
from .lock import only_one

VERSION = 1
MANIFEST, LATENTS, STATE, DROPPED = "manifest.json", "latents.safetensors", "state.safetensors", "dropped"
Identity = Mapping[str, Any]


def job_hash(identity: Identity) -> str:
    """12 hexadecimal digits of the SHA-256 of the identity, keys in order.

    >>> job_hash({"seed": 1, "fps": 8}) == job_hash({"fps": 8, "seed": 1})
    True
    """
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def checksum(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class Record:
    """What clip.json says. files: path from the job folder -> sum, or DROPPED for what was cleaned away. inputs: one
    word for what this clip and those before were made with beside the job's identity; most have none."""

    take: int = 0
    files: dict[str, str] = field(default_factory=dict)
    inputs: str = ""


@dataclass(frozen=True)
class Job:
    folder: Path
    name: str
    identity: Identity

    def clip_folder(self, clip: int) -> Path:
        return self.folder / "clips" / f"{clip + 1:05}"

    def path(self, clip: int, name: str) -> Path:
        return self.clip_folder(clip) / name

    def key(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def record(self, clip: int) -> Record:
        """What is recorded of a clip, unless the record itself is damaged: then nothing is."""
        try:
            content = json.loads((self.clip_folder(clip) / "clip.json").read_text(encoding="utf-8"))
            return Record(int(content["take"]), dict(content["files"]), str(content.get("inputs", "")))
        except (OSError, ValueError, KeyError, TypeError):
            return Record()

    def write_record(self, clip: int, record: Record) -> None:
        self.clip_folder(clip).mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"take": record.take, "files": record.files}
        content |= {"inputs": record.inputs} if record.inputs else {}
        write_text(json.dumps(content, indent=1), self.clip_folder(clip) / "clip.json")

    def recorded(self, clip: int, paths: list[Path]) -> None:
        """Add files that are on the disk to a clip's record."""
        old = self.record(clip)
        self.write_record(clip, replace(old, files=old.files | self.sums(paths)))

    def sums(self, paths: list[Path]) -> dict[str, str]:
        """Of files that are on the disk, as a record has them."""
        return {self.key(path): checksum(path) or "" for path in paths}

    def state_of(self, record: Record, path: Path) -> str:
        """ "whole", "damaged", "missing" (never recorded) or "dropped"."""
        known = record.files.get(self.key(path))
        if known is None or known == DROPPED:
            return known or "missing"
        return "whole" if checksum(path) == known else "damaged"

    def finished(self) -> Iterator[int]:
        """Clips that have a record, in order."""
        for folder in sorted((self.folder / "clips").glob("[0-9]*")):
            if (folder / "clip.json").is_file():
                yield int(folder.name) - 1

    def log(self, remark: str) -> None:
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {remark}\n")

    def write_tensors(self, clip: int, name: str, tensors: Mapping[str, Tensor]) -> Path:
        path = self.path(clip, name)
        # one entry: safetensors orders several by chance, and the same tensors shall be the same file
        write_tensors(tensors, path, {"made for": f"{self.folder.name}, clip {clip + 1}"})
        return path

    def read_tensors(self, clip: int, name: str) -> dict[str, Tensor]:
        return load_file(self.path(clip, name))


@contextmanager
def open_job(root: Path, name: str, identity: Identity) -> Iterator[tuple[Job, str]]:
    """The job of this name and identity, new or as it was left, locked; and what there is to tell about it.

    RenderError for a name that is no file name, NotWritableError, BusyError, OtherVersionError.
    """
    if not re.fullmatch(r"\w[\w .+-]{0,79}", name):
        raise RenderError(
            f"render: the name is {name!r}; use letters, digits, spaces and . + - _, beginning with a letter or a "
            "digit, at most 80"
        )
    job = Job(root / f"{name}-{job_hash(identity)}", name, identity)
    with storage(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "log.txt").touch()
    with only_one(job.folder):
        if (job.folder / MANIFEST).is_file():
            read_manifest(job.folder)
            yield job, f"goes on in {job.folder.name}"
        else:
            remark = why_new(root, name, identity)
            content = {"version": VERSION, "created": time.time(), "name": name, "identity": identity}
            with storage(job.folder):
                write_text(json.dumps(content, indent=1), job.folder / MANIFEST)
            yield job, remark


def read_manifest(folder: Path) -> dict[str, Any]:
    """OtherVersionError when another version wrote it, RenderError when nobody can read it."""
    damaged = f"render: {folder / MANIFEST} is damaged; delete that folder, or give the job another name"
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = content["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise RenderError(damaged) from error
    if version != VERSION:
        raise OtherVersionError(
            f"render: {folder} is a job of version {version}, this StillMotion reads version {VERSION}; use the "
            "StillMotion that wrote it, delete the folder, or give the job another name"
        )
    if not isinstance(content.get("identity"), dict):
        raise RenderError(damaged)
    return content


def why_new(root: Path, name: str, identity: Identity) -> str:
    """In which keys an identity differs from that of the newest job of this name."""
    before: list[dict[str, Any]] = []
    for manifest in root.glob(f"{name}-{'[0-9a-f]' * 12}/{MANIFEST}"):
        with suppress(RenderError):
            before.append(read_manifest(manifest.parent) | {"folder": manifest.parent.name})
    if not before:
        return "a new job"
    newest = max(before, key=lambda content: content["created"])
    changes = differences(newest["identity"], identity)
    return f"a new job, because inputs differ from those of {newest['folder']}: {'; '.join(changes)}"


def differences(old: Identity, new: Identity) -> list[str]:
    """ "seed: 1 -> 2" for every key that differs; long values are only named, keys of inner tables with a dot.

    >>> differences({"seed": 1, "graph": {"model": "a"}}, {"seed": 2, "graph": {"model": "b"}, "fps": 8})
    ['fps: new', 'graph.model: a -> b', 'seed: 1 -> 2']
    """
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{key}.{line}" for line in differences(a, b)]
        elif key not in old or key not in new:
            found.append(f"{key}: {'new' if key in new else 'gone'}")
        elif a != b:
            short = max(len(str(a)), len(str(b))) <= 24
            found.append(f"{key}: {a} -> {b}" if short else f"{key}: changed")
    return found


def clean(job: Job) -> int:
    """Drop the states that only rendering clips again needs; the last one stays, so more clips can follow. Bytes freed.

    After it a clip can still be rendered again: all clips before it, from the first on, are then sampled once more.
    """
    freed, states = 0, [clip for clip in job.finished() if job.path(clip, STATE).is_file()]
    for clip in states[:-1]:
        path, record = job.path(clip, STATE), job.record(clip)
        freed += path.stat().st_size
        job.write_record(clip, replace(record, files=record.files | {job.key(path): DROPPED}))
        path.unlink()
    return freed
