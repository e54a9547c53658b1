"""Runs the parts one after the other, and writes the results after each."""

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..common.report import finish
from . import machine
from .machine import Failed, Setup, Skipped

# name of a part -> its module and function; short and important ones come first
PARTS = {
    "modules": ("modules", "modules"),
    "attention": ("modules", "attention_backends"),
    "streams": ("modules", "two_streams"),
    "sampling": ("sampling", "sampling"),
    "repeat": ("sampling", "repeat"),
    "interrupt": ("sampling", "interrupt"),
    "loading": ("loading", "loading"),
    "long": ("sampling", "long_video"),
    "sd15": ("speed", "sd15"),
    "guidance": ("speed", "guidance"),
    "artv": ("speed", "artv"),
    "retention": ("speed", "retention"),
    "decoder": ("speed", "decoder"),
    "compile": ("sampling", "compiled"),
    "resume": ("training", "resume"),
    "training": ("training", "training"),
}


def select(names: Sequence[str] | None) -> list[str]:
    """The parts of these names, in the order of `PARTS`. ValueError for unknown names."""
    unknown = sorted(set(names or ()) - PARTS.keys())
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    return [name for name in PARTS if not names or name in names]


def run(parts: Sequence[str], setup: Setup, options: argparse.Namespace) -> int:
    """Run the parts; 1 if any failed."""
    torch.set_num_threads(1) if setup.cpu and setup.tiny else None
    machine.start(setup)
    began = time.monotonic()
    results: dict[str, Any] = {"machine": machine.describe(setup), "tiny": setup.tiny, "parts": {}}
    print(results["machine"], flush=True)
    for name in parts:
        elapsed = time.monotonic() - began
        outcome = {"skipped": f"the budget of {options.budget:g} s was spent after {elapsed:.0f} s"}
        if elapsed < options.budget:
            outcome = run_part(name, setup)
        results["parts"][name] = outcome
        write(results, options.out)
        print(f"{name}: {sentence(outcome)}", flush=True)
    failed = [name for name, outcome in results["parts"].items() if "failed" in outcome]
    skipped = [name for name, outcome in results["parts"].items() if "skipped" in outcome]
    finish("gpu", {**results, "failed": failed, "skipped": skipped, "seconds": time.monotonic() - began})
    return 1 if failed else 0


def run_part(name: str, setup: Setup) -> dict[str, Any]:
    """The figures of one part, or why there are none."""
    module, function = PARTS[name]
    start_time = time.monotonic()
    try:
        work: Callable[[Setup], dict[str, Any]] = getattr(import_module(f".{module}", __package__), function)
        figures = work(setup)
    except Skipped as reason:
        figures = {"skipped": str(reason)}
    except Failed as failure:
        figures = {**failure.figures, "failed": str(failure)}
    except Exception as error:  # noqa: BLE001  the other parts still run
        traceback.print_exc()
        figures = {"failed": f"{type(error).__name__}: {error}"}
    finally:
        tidy(setup)
    return {**figures, "part_seconds": time.monotonic() - start_time}


def tidy(setup: Setup) -> None:
    """Unload all models, so that a part does not find the memory of the one before."""
    from comfy import model_management

    model_management.unload_all_models()
    gc.collect()
    if not setup.cpu:
        torch.cuda.empty_cache()


def sentence(outcome: dict[str, Any]) -> str:
    for key in ("failed", "skipped"):
        if key in outcome:
            return f"{key.upper()}: {outcome[key]}"
    return f"passed in {outcome['part_seconds']:.1f} s"


def write(results: dict[str, Any], folder: Path) -> None:
    """results.json, and the same as a table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    lines = [f"{results['machine']}", "", "| part | figure | value | tolerance |", "| --- | --- | --- | --- |"]
    for name, outcome in results["parts"].items():
        tolerances = outcome.get("tolerances", {})
        for figure, value in outcome.items():
            if figure != "tolerances":
                text = f"{value:.4g}" if isinstance(value, float) else str(value)
                lines.append(f"| {name} | {figure} | {text} | {tolerances.get(figure, '')} |")
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
