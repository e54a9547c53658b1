"""How many small faults do the tests notice? Mutants of the mathematics, the rendering and the training loop, made by
Cosmic Ray. Each is tried with the tests that concern its module.

Every mutant is a line of runs/mutants/results.jsonl (--out names another folder) and is tried once: the same command
resumes. --again tries those that survived once more, after a test has been added. equivalent_mutants.toml names mutants
that compute the same as the original, with the reason; they count as survivors.

Keys: `mutants`; `noticed`: share that a failing test or a timeout noticed; `timeouts`; `survived`; `equivalent`: number
of survivors that compute the same; `modules`: number of files; `areas`: `noticed` of each folder; `seconds`: the median
of a mutant.
"""

import argparse
import json
import statistics
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ..common.report import ROOT, finish
from .mutants import Mutant, Outcome, applied, attempt, copy_of, sample, warm_up

sys.path.insert(0, str(ROOT / "scripts"))

from devkit.environment import environment_python

# What is mutated -> pytest's arguments: the tests that concern it, quick ones first. The longest name that fits counts.
TESTS: dict[str, Sequence[str]] = {
    "model_patches/core": (
        "--fast",
        "unit/core",
        "unit/test_value_classes.py",
        "unit/test_temporal.py",
        "unit/vidrd/test_layers.py",
        "unit/artv/test_modules.py",
        "unit/harivo",
        "unit/dreamvideo/test_retention.py",
        "unit/test_checkpoint.py",
        "host/vidrd/test_vidrd.py",
        "host/motion/test_motion.py",
    ),
    "model_patches/harivo": (
        "--fast",
        "unit/harivo",
        "unit/test_value_classes.py",
        "host/harivo/test_guidance.py",
        "host/harivo/test_stepped_cfg.py",
        "host/harivo/test_harivo.py",
        "train/systems/test_harivo_training.py",
    ),
    "model_patches/vidrd": (
        "--fast",
        "unit/vidrd",
        "unit/test_value_classes.py",
        "host/vidrd/test_reuse.py",
        "host/vidrd/test_vidrd.py",
        "host/vidrd/test_vidrd_decoder.py",
        "train/systems/test_vidrd_training.py",
        "train/systems/test_vidrd_decoder_training.py",
    ),
    "model_patches/artv": (
        "--fast",
        "unit/artv",
        "unit/test_value_classes.py",
        "host/artv/test_artv.py",
        "host/artv/test_autoregressive.py",
        "train/systems/test_artv_training.py",
    ),
    "model_patches/dreamvideo": (
        "--fast",
        "unit/dreamvideo",
        "unit/test_value_classes.py",
        "host/dreamvideo/test_dreamvideo.py",
        "host/dreamvideo/test_double_guidance.py",
        "train/systems/test_dreamvideo_training.py",
    ),
    "rendering": ("--fast", "unit/rendering", "unit/test_value_classes.py", "host/vidrd/test_long_video.py"),
    "training/engine": (
        "--fast",
        "train/engine/test_step.py",
        "train/engine/test_records.py",
        "train/engine/test_engine.py",
        "train/engine/test_guarantees.py",
    ),
}
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")


def files_of(area: str) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / area).rglob("*.py"))]


def tests_of(file: str) -> list[str]:
    area = max((area for area in TESTS if file.startswith(f"{area}/")), key=len)
    return [test if test.startswith("-") else f"tests/{test}" for test in TESTS[area]]


def reason(mutant: dict) -> str:
    """Why a mutant computes the same as the original; empty if that is not known."""
    named = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("mutant", [])
    same = [each["reason"] for each in named if all(each[k] == mutant[k] for k in ("file", "before", "after"))]
    return same[0] if same else ""


def baselines(copy: Path, files: Sequence[str]) -> dict[str, float]:
    """Area -> how long its tests take on the unchanged copy, where all of them pass."""
    times = {}
    for file in files:
        tests = tests_of(file)
        if (name := " ".join(tests)) not in times:
            outcome = attempt(copy, tests, timeout=3600, compile_files=True)
            if outcome.kind != "survived":
                raise SystemExit(f"Without any mutant, {outcome.by} fails or hangs; nothing can be measured.")
            times[name] = outcome.seconds
            print(f"{file.rpartition('/')[0]}: its tests take {outcome.seconds:.0f} s", flush=True)
    return times


def tried(path: Path) -> dict[str, dict]:
    """The newest line of every mutant."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {line["key"]: line for line in map(json.loads, lines)}


def run(mutants: Sequence[Mutant], path: Path) -> Iterator[tuple[Mutant, Outcome]]:
    """Try the mutants one after the other, and write a line for each."""
    warm_up()
    with copy_of(ROOT) as copy:
        times = baselines(copy, [mutant.file for mutant in mutants])
        for mutant in mutants:
            tests = tests_of(mutant.file)
            with applied(copy, mutant):
                outcome = attempt(copy, tests, timeout=60 + 4 * times[" ".join(tests)])
            line = {"key": mutant.key, **asdict(mutant), **asdict(outcome)}
            del line["code"]
            with path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            yield mutant, outcome


def summary(lines: Sequence[dict]) -> dict:
    areas = {area: [line for line in lines if line["file"].startswith(f"{area}/")] for area in TESTS}
    survived = [line for line in lines if line["kind"] == "survived"]
    return {
        "mutants": len(lines),
        "noticed": share(lines),
        "timeouts": sum(line["kind"] == "timeout" for line in lines),
        "survived": len(survived),
        "equivalent": sum(bool(reason(line)) for line in survived),
        "modules": len({line["file"] for line in lines}),
        "areas": {area: share(of) for area, of in areas.items() if of},
        "seconds": round(statistics.median(line["seconds"] for line in lines), 1),
    }


def share(lines: Sequence[dict]) -> float:
    return round(sum(line["kind"] != "survived" for line in lines) / len(lines), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutants", type=int, default=330, help="about how many to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--areas", default=",".join(TESTS), help="folders, divided by commas")
    parser.add_argument("--again", action="store_true", help="try those that survived once more")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.jsonl"
    files = [file for area in options.areas.split(",") for file in files_of(area)]
    mutants = sample(environment_python("mutants"), files, options.mutants, options.seed)
    done = {key for key, line in tried(path).items() if not (options.again and line["kind"] == "survived")}
    pending = [mutant for mutant in mutants if mutant.key not in done]
    print(
        f"{len(mutants)} mutants of {len({mutant.file for mutant in mutants})} files, {len(pending)} to try",
        flush=True,
    )
    for number, (mutant, outcome) in enumerate(run(pending, path) if pending else (), start=1):
        print(
            f"{number}/{len(pending)} {outcome.kind} {mutant.file}:{mutant.line} {outcome.seconds:.1f} s {outcome.by}",
            flush=True,
        )
    newest = tried(path)
    lines = [newest[mutant.key] for mutant in mutants]
    for line in lines:
        if line["kind"] == "survived":
            print(f"\nsurvived: {line['file']}:{line['line']}\n- {line['before']}\n+ {line['after']}\n{reason(line)}")
    finish("mutants", summary(lines))


if __name__ == "__main__":
    main()
