"""The tables of `python -m stillmotion.training train CONFIG`: typed, and an unknown key is an error that names it.

A config may begin with `system = "harivo"` (the default), "vidrd" or "vidrd_decoder"; [model] and [loss] are then those
of that system. A field that the paper leaves open says so. The values of a run of the papers are in
configs/harivo_sd15.toml and configs/vidrd_sd21.toml.
"""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from ..model_patches.core.config import GROUP_NORMS
from ..model_patches.harivo.losses import SOFTENINGS, TAU
from ..model_patches.vidrd.config import EMBEDDINGS
from ..model_patches.vidrd.losses import PERCEPTUAL
from .engine import Run

CONFIGS = Path(__file__).parent / "configs"
BASES = ("pocket", "sd15", "sd21")
BUNDLED, RANDOM = "bundled", "random"
DSM = ("plain", "boosted")
SAMPLES_DEPEND_ON = ("frames", "drop", "still_weight")  # of [data]; the data themselves are known by their hash
T = TypeVar("T")


class ConfigError(ValueError):
    """A config cannot be used; the message names the file, the key, and what would do."""


@dataclass(frozen=True, kw_only=True)
class BaseTable:
    """The frozen image model."""

    kind: str = "pocket"  # "pocket", "sd15" or "sd21"
    weights: str = BUNDLED  # a .safetensors file, a diffusers folder, "bundled" (pocket), or "random" (to try a shape)
    half: bool = False  # hold the frozen weights in bfloat16; needs train.precision = "bf16"
    checkpointing: bool = False  # forget activations of the U-Net and compute them again: less memory, more time


@dataclass(frozen=True, kw_only=True)
class DataTable:
    latents: str = ""  # folder of cached latents; made by the verb `latents`
    kept: str = ""  # a list of their clips that are taken, made by the verb `select`; none: all
    frames: int = 24  # of a clip
    drop: float = 0.1  # share of empty captions, for classifier-free guidance
    still_weight: int = 1  # times a drawn clip at rest is taken in an epoch; others once. Ours


@dataclass(frozen=True, kw_only=True)
class DecoderDataTable(DataTable):
    """Pictures: what a decoder learns from. It has no captions and no cached latents."""

    frames: int = 8
    videos: str = ""  # a folder of videos; none: drawn clips
    clips: int = 20000  # drawn ones
    size: int = 64  # width and height in pixels
    fps: float = 6.0  # frames a second, of videos


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """What is trained. Betas and tokens are the paper's; the sizes of the mapping network are not told."""

    mid_block: bool = True
    heads: int = 8
    max_frames: int = 32
    group_norm: str = "per_frame"
    beta_schedule: str = "linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    mapping: bool = True
    mapping_width: int = 128
    mapping_heads: int = 8
    tokens: int = 3  # frame-wise tokens a frame, 0: none
    token_layers: int = 2
    token_kernel: int = 1
    start: str = ""  # a motion or HARIVO file to start from, or "bundled" (pocket)


@dataclass(frozen=True, kw_only=True)
class LossTable:
    """Weights of the terms, all RECONSTRUCTED: the paper does not print them. 0 leaves a term out altogether."""

    reg: float = 0.1
    trs: float = 0.1
    dc: float = 0.01
    softening: str = "sqrt_alpha_bar"
    reg_frames: int = 0  # frames of each clip that the image model sees, chosen by sample; 0: all. Ours, to save time
    trs_queries: int = 256  # query pixels of each map, spread evenly; 0: all. Ours, to save memory
    trs_heads: str = "mean"  # "mean" over heads, or "all"
    tau: float = TAU
    queue: int = 1024
    dsm: str = "plain"  # "plain" (the paper's), or "boosted": min-SNR with `boost`, which suits the pocket model. Ours
    boost: float = 1.0
    high_share: float = 0.0  # share of the samples whose timestep is drawn from high_noise on. Ours
    high_noise: int = 600  # timesteps from here on decide layout and motion


@dataclass(frozen=True, kw_only=True)
class VidrdModelTable:
    """What of VidRD is trained. Layers, dropout and embedding are those of the published code."""

    spatial: bool = True  # fine-tune the blocks of the spatial transformers, too
    conv_layers: int = 4
    dropout: float = 0.1
    group_norm: str = "per_clip"  # or "per_frame": ours
    embedding: str = "stream"  # or "branch": ours, a fresh model is then the image model
    beta_schedule: str = "scaled_linear"  # the base's own, which the paper does not change
    beta_start: float = 0.00085
    beta_end: float = 0.012
    start: str = ""  # a VidRD file to start from


@dataclass(frozen=True, kw_only=True)
class VidrdLossTable:
    """Which noise levels count how much; the paper has none of this."""

    dsm: str = "plain"  # as in LossTable
    boost: float = 1.0
    high_share: float = 0.0
    high_noise: int = 600


@dataclass(frozen=True, kw_only=True)
class DecoderModelTable:
    """Temp-Convs of the decoder. Statistics per frame are ours: a stream is then exact."""

    conv_layers: int = 3
    dropout: float = 0.1
    group_norm: str = "per_frame"  # or "per_clip": the published code


@dataclass(frozen=True, kw_only=True)
class DecoderLossTable:
    """Eq. 9. The weights are the paper's; what the terms are is RECONSTRUCTED. L_reg is constant and left out."""

    rec: float = 1.0
    disc: float = 0.5
    perceptual: str = "gradient"  # or "lpips", with weights
    lpips: str = ""  # a TorchScript file that gives LPIPS of two images in -1..1
    disc_start: int = 0  # step at which the discriminator's part begins; latent diffusion takes 50,001
    disc_width: int = 64
    disc_layers: int = 3


@dataclass(frozen=True, kw_only=True)
class SamplesTable:
    """Pictures while training: one row a prompt."""

    every: int = 500  # steps, 0: never
    prompts: tuple[str, ...] = ()
    steps: int = 12
    guidance: float = 7.5
    columns: int = 8  # frames shown


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
        return {name: value for name, value in chosen.items() if name not in ("model.start", "loss.lpips")}

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


PLANS: dict[str, type[Plan] | type[VidrdPlan] | type[DecoderPlan]] = {
    plan.system: plan for plan in (Plan, VidrdPlan, DecoderPlan)
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
    longest = getattr(getattr(plan, "model", None), "max_frames", None)
    if longest is not None and plan.data.frames > longest:
        raise ConfigError(
            f"{name}: data.frames is {plan.data.frames}, but model.max_frames knows positions for "
            f"{longest}; raise it or use shorter clips"
        )
    if plan.base.half and plan.train.precision != "bf16":
        raise ConfigError(f'{name}: base.half needs train.precision = "bf16"')
