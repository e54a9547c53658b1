"""The tables of `python -m stillmotion.training train CONFIG`: typed, and an unknown key is an error that names it.

A config may begin with `system = "harivo"` (the default), "vidrd", "vidrd_decoder", "artv" or "dreamvideo"; [model] and
[loss] are then those of that system (`tables`). The values of a run of the papers are in configs/harivo_sd15.toml,
configs/vidrd_sd21.toml, configs/artv_sd21.toml and configs/dreamvideo_sd21.toml.
"""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from ..model_patches.artv.config import ANCHORS, LEVELS, STATIC_REFERENCES, STATICS
from ..model_patches.core.config import GROUP_NORMS
from ..model_patches.core.levels import TIMESTEPS
from ..model_patches.dreamvideo.config import INJECT, RANGES, TEMPORAL
from ..model_patches.harivo.losses import SOFTENINGS
from ..model_patches.vidrd.config import EMBEDDINGS
from ..model_patches.vidrd.losses import PERCEPTUAL
from .engine import Run
from .tables import (
    ArtvDataTable,
    ArtvModelTable,
    ArtvSamplesTable,
    BaseTable,
    DataTable,
    DecoderDataTable,
    DecoderLossTable,
    DecoderModelTable,
    DreamVideoDataTable,
    DreamVideoModelTable,
    DreamVideoSamplesTable,
    LossTable,
    ModelTable,
    SamplesTable,
    VidrdLossTable,
    VidrdModelTable,
)

CONFIGS = Path(__file__).parent / "configs"
BASES = ("pocket", "sd15", "sd21")
DSM = ("plain", "boosted")
SAMPLES_DEPEND_ON = (
    *("frames", "drop", "still_weight"),
    *("drop_references", "drop_anchor", "anchor_window", "max_level", "drop_image"),
)  # of [data]; the data themselves are known by their hash
STARTS = ("model.start", "model.controlnet", "loss.lpips")  # files: what of them lasts is known by its hash
T = TypeVar("T")


class ConfigError(ValueError):
    """A config cannot be used; the message names the file, the key, and what would do."""


@dataclass(frozen=True, kw_only=True)
class Basics:
    """What the configs of all systems have."""

    system: ClassVar[str]
    train: Run
    base: BaseTable = field(default_factory=BaseTable)
    data: DataTable = field(default_factory=DataTable)
    samples: SamplesTable = field(default_factory=SamplesTable)

    def settings(self) -> dict[str, str]:
        """What a resumed run must find unchanged, beside the engine's own; files are known by their hashes."""
        kept = {"base": ("kind", "half"), "data": SAMPLES_DEPEND_ON, "model": None, "loss": None}
        chosen = {
            f"{table}.{name}": str(value)
            for table, names in kept.items()
            for name, value in asdict(getattr(self, table)).items()
            if names is None or name in names
        }
        return {name: value for name, value in chosen.items() if name not in STARTS}

    def choices(self) -> dict[str, tuple[str, Sequence[str]]]:
        """Words: key -> (value, the known ones)."""
        return {
            "base.kind": (self.base.kind, BASES),
            "train.precision": (self.train.precision, ("no", "bf16")),
        }

    def least(self) -> dict[str, tuple[float, float]]:
        """Numbers: key -> (value, the smallest that will do)."""
        return {
            "data.frames": (self.data.frames, 2),
            "data.still_weight": (self.data.still_weight, 1),
            "train.batch": (self.train.batch, 1),
            "train.save_every": (self.train.save_every, 1),
            "train.log_every": (self.train.log_every, 1),
            "train.keep": (self.train.keep, 1),
        }

    def most(self) -> dict[str, tuple[float, float]]:
        """Numbers: key -> (value, the largest that will do)."""
        return {"data.drop": (self.data.drop, 1)}


@dataclass(frozen=True, kw_only=True)
class Plan(Basics):
    """A config of HARIVO."""

    system: ClassVar[str] = "harivo"
    model: ModelTable = field(default_factory=ModelTable)
    loss: LossTable = field(default_factory=LossTable)

    def choices(self) -> dict[str, tuple[str, Sequence[str]]]:
        return super().choices() | {
            "loss.softening": (self.loss.softening, SOFTENINGS),
            "loss.trs_heads": (self.loss.trs_heads, ("mean", "all")),
            "loss.dsm": (self.loss.dsm, DSM),
        }

    def least(self) -> dict[str, tuple[float, float]]:
        return super().least() | {
            "model.tokens": (self.model.tokens, 0),
            "loss.reg": (self.loss.reg, 0),
            "loss.trs": (self.loss.trs, 0),
            "loss.dc": (self.loss.dc, 0),
            "loss.reg_frames": (self.loss.reg_frames, 0),
            "loss.trs_queries": (self.loss.trs_queries, 0),
            "loss.queue": (self.loss.queue, 1),
        }


@dataclass(frozen=True, kw_only=True)
class VidrdPlan(Basics):
    """A config of VidRD's U-Net."""

    system: ClassVar[str] = "vidrd"
    model: VidrdModelTable = field(default_factory=VidrdModelTable)
    loss: VidrdLossTable = field(default_factory=VidrdLossTable)

    def choices(self) -> dict[str, tuple[str, Sequence[str]]]:
        return super().choices() | {
            "model.group_norm": (self.model.group_norm, GROUP_NORMS),
            "model.embedding": (self.model.embedding, EMBEDDINGS),
            "loss.dsm": (self.loss.dsm, DSM),
        }

    def least(self) -> dict[str, tuple[float, float]]:
        return super().least() | {"model.conv_layers": (self.model.conv_layers, 1)}


@dataclass(frozen=True, kw_only=True)
class ArtvPlan(Basics):
    """A config of ART-V."""

    system: ClassVar[str] = "artv"
    data: ArtvDataTable = field(default_factory=ArtvDataTable)
    model: ArtvModelTable = field(default_factory=ArtvModelTable)
    loss: VidrdLossTable = field(default_factory=VidrdLossTable)
    samples: ArtvSamplesTable = field(default_factory=ArtvSamplesTable)

    def choices(self) -> dict[str, tuple[str, Sequence[str]]]:
        anchors = [name for name in ANCHORS if name != "clip"]  # whose tokens no cache of latents holds
        return super().choices() | {
            "model.anchor": (self.model.anchor, anchors),
            "model.level_embedding": (self.model.level_embedding, LEVELS),
            "model.static": (self.model.static, STATICS),
            "model.static_reference": (self.model.static_reference, STATIC_REFERENCES),
            "loss.dsm": (self.loss.dsm, DSM),
        }

    def least(self) -> dict[str, tuple[float, float]]:
        return super().least() | {
            "data.drop_references": (self.data.drop_references, 0),
            "data.drop_anchor": (self.data.drop_anchor, 0),
            "data.anchor_window": (self.data.anchor_window, 1),
            "data.max_level": (self.data.max_level, 0),
            "samples.level": (self.samples.level, 0),
        }

    def most(self) -> dict[str, tuple[float, float]]:
        return super().most() | {
            "data.drop_references": (self.data.drop_references, 1),
            "data.drop_anchor": (self.data.drop_anchor, 1),
            "data.max_level": (self.data.max_level, TIMESTEPS - 1),
            "samples.level": (self.samples.level, TIMESTEPS - 1),
        }


@dataclass(frozen=True, kw_only=True)
class DreamVideoPlan(Basics):
    """A config of DreamVideo."""

    system: ClassVar[str] = "dreamvideo"
    data: DreamVideoDataTable = field(default_factory=DreamVideoDataTable)
    model: DreamVideoModelTable = field(default_factory=DreamVideoModelTable)
    loss: VidrdLossTable = field(default_factory=VidrdLossTable)
    samples: DreamVideoSamplesTable = field(default_factory=DreamVideoSamplesTable)

    def choices(self) -> dict[str, tuple[str, Sequence[str]]]:
        return super().choices() | {
            "model.temporal": (self.model.temporal, TEMPORAL),
            "model.inject": (self.model.inject, INJECT),
            "model.image_range": (self.model.image_range, RANGES),
            "model.group_norm": (self.model.group_norm, GROUP_NORMS),
            "model.embedding": (self.model.embedding, EMBEDDINGS),
            "loss.dsm": (self.loss.dsm, DSM),
        }

    def least(self) -> dict[str, tuple[float, float]]:
        return super().least() | {
            "data.drop_image": (self.data.drop_image, 0),
            "model.conv_layers": (self.model.conv_layers, 1),
            "samples.clips": (self.samples.clips, 0),
        }

    def most(self) -> dict[str, tuple[float, float]]:
        return super().most() | {"data.drop_image": (self.data.drop_image, 1)}


@dataclass(frozen=True, kw_only=True)
class DecoderPlan(Basics):
    """A config of VidRD's temporal-aware decoder."""

    system: ClassVar[str] = "vidrd_decoder"
    data: DecoderDataTable = field(default_factory=DecoderDataTable)
    model: DecoderModelTable = field(default_factory=DecoderModelTable)
    loss: DecoderLossTable = field(default_factory=DecoderLossTable)

    def choices(self) -> dict[str, tuple[str, Sequence[str]]]:
        return super().choices() | {
            "model.group_norm": (self.model.group_norm, GROUP_NORMS),
            "loss.perceptual": (self.loss.perceptual, PERCEPTUAL),
        }

    def least(self) -> dict[str, tuple[float, float]]:
        return super().least() | {
            "model.conv_layers": (self.model.conv_layers, 1),
            "loss.rec": (self.loss.rec, 0),
            "loss.disc": (self.loss.disc, 0),
            "loss.disc_layers": (self.loss.disc_layers, 1),
            "data.clips": (self.data.clips, 1),
            "data.size": (self.data.size, 8),
        }


PLANS: dict[str, type[Plan] | type[VidrdPlan] | type[DecoderPlan] | type[ArtvPlan] | type[DreamVideoPlan]] = {
    plan.system: plan for plan in (Plan, VidrdPlan, DecoderPlan, ArtvPlan, DreamVideoPlan)
}


def read(path: Path, changes: Sequence[str] = (), *, out: Path | None = None) -> Any:
    """The plan of a config file with TABLE.KEY=VALUE changes, one of `PLANS`.

    out: the run's folder, runs/NAME of the file where not given.

    ConfigError for a file that is not there or is no TOML, an unknown key, a value of the wrong kind or out of range.
    """
    tables = _toml(path)
    system = tables.pop("system", "harivo")
    if system not in PLANS:
        raise ConfigError(f"{path.name}: system is {system!r}; use one of {', '.join(PLANS)}")
    for change in changes:
        _change(tables, change)
    known = {f.name: get_type_hints(PLANS[system])[f.name] for f in fields(PLANS[system])}
    for name in tables:
        if name not in known:
            raise ConfigError(f"{path.name}: there is no table [{name}]{_nearest(name, list(known))}")
    if "out" in tables.get("train", {}):
        raise ConfigError(f"{path.name}: train.out is given by --out, not in the file")
    tables["train"] = {"out": out or Path("runs") / path.stem, **tables.get("train", {})}
    built = {name: build(cls, tables.get(name, {}), f"{path.name}: {name}") for name, cls in known.items()}
    plan = PLANS[system](**built)
    _check(plan, path.name)
    return plan


def find(name: str) -> Path:
    """A config file by path, or a bundled one by name."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return path
    bundled = CONFIGS / f"{name}.toml"
    if not bundled.exists():
        known = sorted({p.stem for system in PLANS for p in CONFIGS.glob(f"{system}_*.toml")})
        raise ConfigError(f"there is no config {name}; give a .toml file, or one of {', '.join(known)}")
    return bundled


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """The dataclass of a table. ConfigError for a key that it does not have or a value of another kind."""
    kinds = get_type_hints(cls)
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in table:
        if key not in names:
            raise ConfigError(f"{where}.{key} is unknown{_nearest(key, names)}; known are {', '.join(names)}")
    values = {key: _typed(value, kinds[key], f"{where}.{key}") for key, value in table.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def _toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"there is no config file {path}")
    try:
        tables = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for name, table in tables.items():
        if not isinstance(table, dict) and name != "system":
            raise ConfigError(f"{path.name}: {name} stands outside of a table; put it below [train] or another")
    return tables


def _change(tables: dict[str, dict[str, Any]], change: str) -> None:
    name, equals, value = change.partition("=")
    table, _, key = name.strip().partition(".")
    if not equals or not key:
        raise ConfigError(f"--set {change}: write it as TABLE.KEY=VALUE, such as train.steps=200")
    try:
        tables.setdefault(table, {})[key] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        tables.setdefault(table, {})[key] = value.strip()  # a word without quotes


def _typed(value: Any, kind: Any, where: str) -> Any:
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}; give a list")
        return tuple(_typed(each, get_args(kind)[0], where) for each in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path:
        return Path(str(value))
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = {int: "a whole number", float: "a number", str: "a word in quotes", bool: "true or false"}[kind]
        raise ConfigError(f"{where} is {value!r}; it must be {wanted}")
    return value


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _check(plan: Basics, name: str) -> None:
    for key, (value, known) in plan.choices().items():
        if value not in known:
            raise ConfigError(f"{name}: {key} is {value!r}; use one of {', '.join(known)}")
    for key, (value, smallest) in plan.least().items():
        if value < smallest:
            raise ConfigError(f"{name}: {key} is {value}; it must be at least {smallest}")
    for key, (value, largest) in plan.most().items():
        if value > largest:
            raise ConfigError(f"{name}: {key} is {value}; it must be at most {largest}")
    longest = getattr(getattr(plan, "model", None), "max_frames", None)
    if longest is not None and plan.data.frames > longest:
        raise ConfigError(
            f"{name}: data.frames is {plan.data.frames}, but model.max_frames knows positions for "
            f"{longest}; raise it or use shorter clips"
        )
    if plan.base.half and plan.train.precision != "bf16":
        raise ConfigError(f'{name}: base.half needs train.precision = "bf16"')
