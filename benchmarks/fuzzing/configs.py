"""Damaged configs of trainings, and odd values on the command line."""

import json
import math
import random
import tomllib
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...training import registry
from ...training.plans.config import CONFIGS
from .damage import changed_json, damaged_text, odd_value
from .harness import Case, Kind
from .naming import Named, named


@cache
def _bundled() -> dict[str, dict[str, Any]]:
    tables = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(CONFIGS.glob("*_*.toml"))}
    return {name: table for name, table in tables.items() if "system" in table}


def as_toml(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value if value is not None else "")


def text_of(tables: dict[str, Any]) -> str:
    single = [f"{json.dumps(key)} = {as_toml(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            single.append(f"[{json.dumps(name)}]")
            single += [f"{json.dumps(key)} = {as_toml(value)}" for key, value in table.items()]
    return "\n".join(single) + "\n"


def warm(folder: Path) -> Case:
    path = folder / "config.toml"
    path.write_text(text_of(_bundled()["harivo_pocket"]), encoding="utf-8")
    return Case(path, "whole", ())


def make(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(sorted(_bundled()))
    tables, changes, label = _bundled()[name], [], rng.choice(("value", "value", "text", "set"))
    path = folder / "config.toml"
    if label == "value":
        path.write_bytes(text_of(changed_json(tables, rng)).encode("utf-8", "surrogatepass"))
    elif label == "text":
        path.write_bytes(damaged_text(text_of(tables), rng))
    else:
        path.write_text(text_of(tables), encoding="utf-8")
        table = rng.choice([key for key, value in tables.items() if isinstance(value, dict)])
        key = rng.choice(sorted(tables[table]) or ["x"])
        changes = [rng.choice((f"{table}.{key}={as_toml(odd_value(rng))}", f"{key}=1", "=", f"{table}.{key}=[[[[", ""))]
    return Case(path, f"{name}: {label}", tuple(changes))


def read(case: Case) -> object:
    changes = case.expected
    assert isinstance(changes, tuple)
    return named(lambda: registry.read(case.path, changes))


def is_right(case: Case, value: object) -> bool:
    """Every number of the plan is finite, and every value of the file that was not set otherwise is in the plan."""
    tables = tomllib.loads(case.path.read_text(encoding="utf-8"))
    for field in fields(value):  # pyright: ignore[reportArgumentType]
        table = getattr(value, field.name)
        numbers = [v for v in vars(table).values() if isinstance(v, float)] if is_dataclass(table) else []
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            return False
        for key, item in tables.get(field.name, {}).items() if not case.expected else ():
            plain = getattr(table, key)
            if (list(plain) if isinstance(plain, tuple) else plain) != item:
                return False
    return True


KIND = Kind("configs", make, read, is_right, (Named,), warm)
