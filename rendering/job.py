"""The folder of one render job: its identity, and which of its files are complete.

    ROOT/NAME-0123456789ab/         the hash covers everything on which the frames depend
        manifest.json               this identity, and the versions and device of the newest render
        clips/00001/clip.json       the complete files of clip 1 with their SHA-256, and its take
                    latents.safetensors, state.safetensors, segment.mp4
        frames/000001.png           only for image formats
        growing.mp4                 during rendering: the video so far
        NAME.mp4, video.json        the video, and from which segments it was joined
        log.txt                     a log of the renders

A clip is recorded after its files are on the disk, so recorded files are complete unless they are damaged, which their
checksums show. The number of clips is not part of the identity: more clips can be added to a folder.

A clip is rendered in takes: take 0 is the first one, any other take is a clip that was rendered again on request.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..model_patches.files import read_json, write_tensors, write_text
from .errors import OtherVersionError, RenderError, storage
from .lock import exclusive
from .names import check_name

VERSION = 1
PART = 2**22  # bytes that are read at once: some milliseconds
MANIFEST, LATENTS, STATE, DROPPED = "manifest.json", "latents.safetensors", "state.safetensors", "dropped"
Identity = Mapping[str, Any]


def job_hash(identity: Identity) -> str:
    """12 hexadecimal digits of the SHA-256 of the identity, keys in order.

    >>> job_hash({"seed": 1, "fps": 8}) == job_hash({"fps": 8, "seed": 1})
    True
    """
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def checksum(path: Path, look: Callable[[], None] = lambda: None) -> str | None:
    """SHA-256 of a file; None if there is no such file. look: is called for each part and may stop it."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(PART):
                digest.update(part)
                look()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    return digest.hexdigest()


@dataclass(frozen=True)
class Record:
    """The content of clip.json. files: path relative to the job folder -> checksum, or DROPPED for files that were
    cleaned up. inputs: a hash of the inputs of this and all previous clips that are not part of the job's identity;
    empty for most jobs."""

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
        """The record of a clip; an empty record if there is none or it is damaged."""
        try:
            content = read_json(self.clip_folder(clip) / "clip.json")
            return Record(int(content["take"]), dict(content["files"]), str(content.get("inputs", "")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return Record()

    def write_record(self, clip: int, record: Record) -> None:
        self.clip_folder(clip).mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"take": record.take, "files": record.files}
        content |= {"inputs": record.inputs} if record.inputs else {}
        write_text(json.dumps(content, indent=1), self.clip_folder(clip) / "clip.json")

    def add_to_record(self, clip: int, paths: list[Path]) -> None:
        """Add files that are on the disk to a clip's record."""
        old = self.record(clip)
        self.write_record(clip, replace(old, files=old.files | self.sums(paths)))

    def sums(self, paths: list[Path]) -> dict[str, str]:
        """Checksums of files on the disk, as in a record."""
        return {self.key(path): checksum(path) or "" for path in paths}

    def state_of(self, record: Record, path: Path, look: Callable[[], None] = lambda: None) -> str:
        """ "whole", "damaged", "missing" (never recorded) or "dropped". look: see `checksum`."""
        expected = record.files.get(self.key(path))
        if expected is None or expected == DROPPED:
            return expected or "missing"
        return "whole" if checksum(path, look) == expected else "damaged"

    def finished(self) -> Iterator[int]:
        """Clips that have a record, in order."""
        folders = [path for path in (self.folder / "clips").glob("[0-9]*") if re.fullmatch("[0-9]{5,7}", path.name)]
        for folder in sorted(folders, key=lambda path: int(path.name)):
            if int(folder.name) and (folder / "clip.json").is_file():
                yield int(folder.name) - 1

    def log(self, remark: str) -> None:
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {remark}\n")

    def write_tensors(self, clip: int, name: str, tensors: Mapping[str, Tensor]) -> Path:
        path = self.path(clip, name)
        # one entry, because safetensors orders several randomly, and equal tensors must give equal files
        write_tensors(tensors, path, {"made for": f"{self.folder.name}, clip {clip + 1}"})
        return path

    def read_tensors(self, clip: int, name: str) -> dict[str, Tensor]:
        """RenderError when the file is missing or cannot be read, as after a change during the render."""
        path = self.path(clip, name)
        try:
            return load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise RenderError(
                f"render: {path} cannot be read ({error}); it was changed or removed during the render: queue again, "
                "and it is rendered again"
            ) from error


@contextmanager
def open_job(
    root: Path, name: str, identity: Identity, machine: Mapping[str, str] | None = None
) -> Iterator[tuple[Job, str]]:
    """The new or existing job with this name and identity, locked; and a remark about it.

    machine: versions and device, on which only the last bits of the frames depend. They are recorded, but are not part
    of the identity, so that an update does not make every job a new one; the remark names those that changed.

    RenderError for a name that is not a valid file name, NotWritableError, BusyError, OtherVersionError.
    """
    check_name(name)
    job = Job(root / f"{name}-{job_hash(identity)}", name, identity)
    with storage(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "log.txt").touch()
    with exclusive(job.folder):
        if (job.folder / MANIFEST).is_file():
            content = read_manifest(job.folder)
            remark = f"resumes in {job.folder.name}" + _other_machine(content, machine or {})
            if machine and content.get("machine") != machine:
                _write_manifest(job.folder, content | {"machine": dict(machine)})
            yield job, remark
        else:
            remark = reason_for_new_job(root, name, identity)
            content = {"version": VERSION, "created": time.time(), "name": name, "identity": identity}
            _write_manifest(job.folder, content | ({"machine": dict(machine)} if machine else {}))
            yield job, remark


def _write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    with storage(folder):
        write_text(json.dumps(content, indent=1), folder / MANIFEST)


def _other_machine(content: Mapping[str, Any], machine: Mapping[str, str]) -> str:
    """What changed since the job was last rendered, as the end of a sentence; "" for nothing."""
    recorded = content.get("machine")
    changes = differences(recorded, machine) if machine and isinstance(recorded, dict) else []
    if not changes:
        return ""
    return f"; {', '.join(changes)}: the last bits of what is rendered from here on may differ from the frames before"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest. OtherVersionError when another version wrote it, RenderError when it cannot be read."""
    damaged = f"render: {folder / MANIFEST} is damaged; delete that folder, or give the job another name"
    try:
        content = read_json(folder / MANIFEST)
        version = content["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RenderError(damaged) from error
    if version != VERSION:
        raise OtherVersionError(
            f"render: {folder} is a job of version {version}, but this StillMotion reads version {VERSION}; use the "
            "StillMotion that wrote it, delete the folder, or give the job another name"
        )
    if not isinstance(content.get("identity"), dict):
        raise RenderError(damaged)
    return content


def reason_for_new_job(root: Path, name: str, identity: Identity) -> str:
    """A sentence on which inputs differ from those of the newest job of this name. Damaged jobs are passed over."""
    manifests: list[dict[str, Any]] = []
    for manifest in root.glob(f"{name}-{'[0-9a-f]' * 12}/{MANIFEST}"):
        with suppress(RenderError):
            manifests.append(read_manifest(manifest.parent) | {"folder": manifest.parent.name})
    if not manifests:
        return "a new job"
    newest = max(manifests, key=_created)
    changes = differences(newest["identity"], identity)
    return f"a new job, because inputs differ from those of {newest['folder']}: {'; '.join(changes)}"


def _created(content: Mapping[str, Any]) -> float:
    """When a job was created, in seconds; 0 for a manifest that does not say so."""
    created = content.get("created")
    return created if isinstance(created, int | float) else 0.0


def differences(old: Identity, new: Identity) -> list[str]:
    """ "seed: 1 -> 2" for every key that differs; long values are omitted, keys of nested dicts are joined by a dot.

    >>> differences({"seed": 1, "graph": {"model": "a"}}, {"seed": 2, "graph": {"model": "b"}, "fps": 8})
    ['fps: new', 'graph.model: a -> b', 'seed: 1 -> 2']
    """
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += [f"{key}.{line}" for line in differences(a, b)]
        elif key not in old or key not in new:
            lines.append(f"{key}: {'new' if key in new else 'gone'}")
        elif a != b:
            short = max(len(str(a)), len(str(b))) <= 24
            lines.append(f"{key}: {a} -> {b}" if short else f"{key}: changed")
    return lines


def clean(job: Job) -> int:
    """Delete the states that are only needed to render clips again; the last one stays for further clips.

    Returns the number of bytes freed. A clip can still be rendered again afterwards: all previous clips are then
    sampled again, from the first one.
    """
    size, states = 0, [clip for clip in job.finished() if job.path(clip, STATE).is_file()]
    for clip in states[:-1]:
        path, record = job.path(clip, STATE), job.record(clip)
        size += path.stat().st_size
        job.write_record(clip, replace(record, files=record.files | {job.key(path): DROPPED}))
        path.unlink()
    return size
