"""Reads the configs of `python -m stillmotion.training train CONFIG`. Values are typed, and unknown keys are errors.

A config may start with `system = "harivo"` (the default), "vidrd", "vidrd_decoder", "artv" or "dreamvideo", which
selects the tables [model] and [loss]. The values of the papers are in configs/harivo_sd15.toml, vidrd_sd21.toml,
artv_sd21.toml and dreamvideo_sd21.toml.
"""

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .common import BasePlan
from .errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
MOST = 2**63 - 1  # of any number, so that it fits into 64 bits
DEFAULT_SYSTEM = "harivo"  # of a file that does not name one
POSITIVE = (
    *("lr", "grad_clip", "steps", "frames", "heads", "max_frames", "mapping_width", "mapping_heads", "token_layers"),
    *("token_kernel", "conv_layers", "adapter_blocks", "anchor_patch", "anchor_ff", "columns", "tau", "mask_channels"),
    *("mask_heads", "layers_per_block"),
)
T = TypeVar("T")


def read(
    path: Path, plans: Mapping[str, type[BasePlan]], changes: Sequence[str] = (), *, out: Path | None = None
) -> Any:
    """Read a config file, apply TABLE.KEY=VALUE changes, and return an instance of the plan of its system.

    plans: system -> class of its plan. out: the output folder; default: runs/NAME, where NAME is that of the file.

    Raises ConfigError for a file that does not exist or is not TOML, for an unknown key, and for a value of the wrong
    type or out of range.
    """
    tables = toml(path)
    system = tables.pop("system", DEFAULT_SYSTEM)
    if not isinstance(system, str) or system not in plans:
        raise ConfigError(f"{path.name}: system is {system!r}; use one of {', '.join(plans)}")
    for change in changes:
        _change(tables, change)
    kinds = {f.name: get_type_hints(plans[system])[f.name] for f in fields(plans[system])}
    for name in tables:
        if name not in kinds:
            raise ConfigError(f"{path.name}: there is no table [{name}]{_nearest(name, list(kinds))}")
    if "out" in tables.get("train", {}):
        raise ConfigError(f"{path.name}: train.out cannot be set in the file; use --out")
    tables["train"] = {"out": out or Path("runs") / path.stem, **tables.get("train", {})}
    values = {name: build(kind, tables.get(name, {}), f"{path.name}: {name}") for name, kind in kinds.items()}
    plan = plans[system](**values)
    _check(plan, path.name)
    return plan


def find(name: str) -> Path:
    """The path of a config file, or of a bundled one by its name. Raises ConfigError for an unknown name."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return path
    bundled = CONFIGS / f"{name}.toml"
    if not bundled.exists():
        names = sorted(path.stem for path in CONFIGS.glob("*_*.toml") if "system" in toml(path))
        raise ConfigError(f"there is no config {name}; give a .toml file, or one of {', '.join(names)}")
    return bundled


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass of a table. Raises ConfigError for an unknown key or a value of the wrong type."""
    kinds = get_type_hints(cls)
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in table:
        if key not in names:
            raise ConfigError(f"{where}.{key} is unknown{_nearest(key, names)}; the keys are {', '.join(names)}")
    values = {key: _typed(value, kinds[key], f"{where}.{key}") for key, value in table.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. ConfigError for any other file."""
    if not path.is_file():
        raise ConfigError(f"there is no config file {path}; give the path of a .toml file, or a bundled name")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}; correct the file, which must be UTF-8 text") from error
    for name, table in tables.items():
        if not isinstance(table, dict) and name != "system":
            raise ConfigError(f"{path.name}: {name} is outside of a table; move it below [train] or another table")
    return tables


def _change(tables: dict[str, dict[str, Any]], change: str) -> None:
    name, equals, value = change.partition("=")
    table, _, key = name.strip().partition(".")
    if not equals or not key:
        raise ConfigError(f"--set {change}: write it as TABLE.KEY=VALUE, such as train.steps=200")
    try:
        tables.setdefault(table, {})[key] = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        tables.setdefault(table, {})[key] = value.strip()  # a string without quotes


def _typed(value: Any, kind: Any, where: str) -> Any:
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}; give a list")
        return tuple(_typed(item, get_args(kind)[0], where) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool) and kind in (int, float):
        _check_number(value, kind, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path:
        return Path(str(value))
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected = {int: "an integer", float: "a number", str: "a string in quotes", bool: "true or false"}[kind]
        raise ConfigError(f"{where} is {value!r}; it must be {expected}")
    return value


def _check_number(value: float, kind: type[float], where: str) -> None:
    """ConfigError for a number that no setting has. Limits of single settings are those of the plan."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} is {value}; it must be a finite number")
    if value < 0:
        raise ConfigError(f"{where} is {kind(value)}; it must be at least 0")
    if value > MOST:
        raise ConfigError(f"{where} is larger than {MOST}; give a smaller number")


def _nearest(name: str, names: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {matches[0]}?" if matches else ""


def _check_positive(plan: BasePlan, name: str) -> None:
    """ConfigError for a setting that must be above 0, in any of the tables that have it."""
    for table in fields(plan):
        values = getattr(plan, table.name)
        for key in POSITIVE:
            value = getattr(values, key, 1)
            numbers = value if isinstance(value, tuple) else (value,)
            if any(number <= 0 for number in numbers if isinstance(number, int | float)):
                raise ConfigError(f"{name}: {table.name}.{key} is {value}; it must be above 0")
        start, end = getattr(values, "beta_start", None), getattr(values, "beta_end", None)
        if start is not None and end is not None and not 0 < start <= end < 1:
            raise ConfigError(f"{name}: {table.name}.beta_start is {start} and beta_end {end}; they must rise below 1")


def _check(plan: BasePlan, name: str) -> None:
    _check_positive(plan, name)
    for key, (value, choices) in plan.choices().items():
        if value not in choices:
            raise ConfigError(f"{name}: {key} is {value!r}; use one of {', '.join(choices)}")
    for key, (value, smallest) in plan.least().items():
        if value < smallest:
            raise ConfigError(f"{name}: {key} is {value}; it must be at least {smallest}")
    for key, (value, largest) in plan.most().items():
        if value > largest:
            raise ConfigError(f"{name}: {key} is {value}; it must be at most {largest}")
    longest = getattr(getattr(plan, "model", None), "max_frames", None)
    if longest is not None and plan.data.frames > longest:
        raise ConfigError(
            f"{name}: data.frames is {plan.data.frames}, but model.max_frames is {longest}; raise model.max_frames or "
            "use shorter clips"
        )
    if plan.base.half and plan.train.precision != "bf16":
        raise ConfigError(f'{name}: base.half needs train.precision = "bf16"')
