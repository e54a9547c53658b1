"""Runs many damaged inputs through a reader, each in a child process that is ended when it takes too long.

An outcome is one of:

    named       the reader's own error, in one sentence
    equal       the value that the input states
    wrong       another value
    raw         an error that is not the reader's own, or the death of the process
    hang        more than LIMIT seconds of processor time, or more memory than the input has bytes and SPARE
    code_run    the input ran code: the file MARKER exists
"""

import contextlib
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from select import select

OUTCOMES = ("named", "equal", "wrong", "raw", "hang", "code_run")
LIMIT, SPARE = 10.0, 2**26 + 2**25  # seconds of processor time; bytes: 64 MiB, and 32 MiB for what Python itself takes
LONGEST = 2000  # characters of an error that is still a sentence
MARKER = "CODE_RAN"


@dataclass(frozen=True)
class Case:
    """One damaged input. path: the file or folder; label: what was done to it; expected: what the judge needs."""

    path: Path
    label: str
    expected: object = None


@dataclass(frozen=True)
class Kind:
    """One kind of inputs. make: writes a case into a folder. read: the value of a case, or one of `errors`. is_right:
    whether it is the value that the input states. warm: writes an undamaged case, which is read first, so that what is
    imported for it does not count as its memory."""

    name: str
    make: Callable[[random.Random, Path], Case]
    read: Callable[[Case], object]
    is_right: Callable[[Case, object], bool]
    errors: tuple[type[BaseException], ...]
    warm: Callable[[Path], Case]


@dataclass(frozen=True)
class Result:
    number: int
    label: str
    outcome: str
    text: str = ""


def run(kind: Kind, numbers: range, seed: int) -> Iterator[Result]:
    """The results of the cases with these numbers. Case i is the same whatever ran before it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        kind.read(kind.warm(Path(folder)))
    waiting = list(numbers)
    while waiting:
        for result in _child(kind, waiting, seed):
            waiting.remove(result.number)
            yield result


def _child(kind: Kind, numbers: list[int], seed: int) -> Iterator[Result]:
    """Results from one child process, until it ends or hangs."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb", buffering=0) as pipe:
                _work(kind, numbers, seed, pipe)
        except BaseException:  # noqa: BLE001  a fault of the benchmark, which must not run on as a second parent
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        yield from _results(pipe, child, numbers)
    os.waitpid(child, 0)


def _results(pipe, child: int, numbers: list[int]) -> Iterator[Result]:
    for number in numbers:
        label, start, before = "", time.monotonic(), _processor_seconds(child)
        while True:
            if not select([pipe], [], [], 0.5)[0]:
                # a busy machine is not the reader's fault, and neither is the time to write a case
                waiting = time.monotonic() - start
                if waiting < 12 * LIMIT and (not label or _processor_seconds(child) - before < LIMIT):
                    continue
                os.kill(child, signal.SIGKILL)
                yield Result(number, label, "hang", f"more than {LIMIT:g} s of processor time, or {12 * LIMIT:g} s")
                return
            message = _message(pipe)
            if message is None:
                yield Result(number, label, "raw", "the process died")
                return
            if isinstance(message, Result):
                yield message
                break
            label, start, before = message, time.monotonic(), _processor_seconds(child)


def _processor_seconds(child: int) -> float:
    """Seconds of processor time that a child has taken. Elsewhere than on Linux: so many that wall time counts."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{child}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return time.monotonic()


def _message(pipe):
    """The next message of the child, which is this program; None when it has ended."""
    size = pipe.read(4)
    return pickle.loads(pipe.read(int.from_bytes(size, "little"))) if len(size) == 4 else None  # noqa: S301


def _send(pipe, message: object) -> None:
    content = pickle.dumps(message)
    pipe.write(len(content).to_bytes(4, "little") + content)  # a pipe takes 4 kB at once


def _work(kind: Kind, numbers: list[int], seed: int, pipe) -> None:
    for number in numbers:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            case = kind.make(random.Random(f"{kind.name} {seed} {number}"), Path(folder))
            label = case.label[:200]
            _send(pipe, label)
            outcome, text = outcome_of(kind, case, Path(folder))
        _send(pipe, Result(number, label, outcome, text[:LONGEST]))


def outcome_of(kind: Kind, case: Case, folder: Path) -> tuple[str, str]:
    """The outcome of a case, in this process, and the text of an error."""
    marker = folder / MARKER
    os.environ["STILLMOTION_FUZZ_MARKER"] = str(marker)
    memory = Memory()
    try:
        value = kind.read(case)
        outcome, text = ("equal" if kind.is_right(case, value) else "wrong"), repr(value)[:200]
    except kind.errors as error:
        text = str(error)
        outcome = "named" if text and len(text) < LONGEST and "Traceback" not in text else "raw"
    except BaseException as error:  # noqa: BLE001  this is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        outcome, text = (
            "raw",
            f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:{place.lineno})",
        )
    if marker.exists():
        return "code_run", text
    if outcome in ("named", "equal") and memory.growth() > size_of(case.path) + SPARE:
        return "hang", f"{memory.growth() / 2**20:.0f} MiB of memory; {text}"
    return outcome, text


class Memory:
    """The peak of this process's memory since now, in bytes. Elsewhere than on Linux it is not measured."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.start = self._peak()

    def growth(self) -> int:
        return self._peak() - self.start

    @staticmethod
    def _peak() -> int:
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return 0


def size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def totals(results: list[Result]) -> dict[str, int]:
    counts = Counter(result.outcome for result in results)
    return {"cases": len(results), **{outcome: counts[outcome] for outcome in OUTCOMES}}
