"""The tables of a training config that the systems share, one class each; `config` reads them.

Fields that a paper does not specify are marked.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .run import TrainTable

BUNDLED, RANDOM = "bundled", "random"
POCKET = Path(__file__).resolve().parents[2] / "pocket"  # the bundled files


@dataclass(frozen=True, kw_only=True)
class BaseTable:
    """The frozen image model."""

    kind: str = "pocket"  # "pocket", "sd15" or "sd21"
    weights: str = BUNDLED  # a .safetensors file, a diffusers folder, "bundled" (pocket), or "random" (to try a config)
    half: bool = False  # store the frozen weights in bfloat16; needs train.precision = "bf16"
    checkpointing: bool = False  # gradient checkpointing of the U-Net: less memory, more time


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """The training data."""

    latents: str = ""  # folder of cached latents, written by the verb `latents`
    selection: str = ""  # list of the clips to use, written by the verb `select`; empty: all clips
    frames: int = 24  # frames of a clip
    drop: float = 0.1  # share of empty captions, for classifier-free guidance
    still_weight: int = 1  # uses of a drawn clip at rest per epoch; other clips are used once. Ours


@dataclass(frozen=True, kw_only=True)
class LayersTable:
    """VidRD's temporal layers. Their number, dropout and embedding are those of the published code."""

    conv_layers: int = 4
    dropout: float = 0.1
    group_norm: str = "per_clip"  # or "per_frame", which is ours
    embedding: str = "stream"  # or "branch", which is ours: an untrained model then equals the image model
    beta_schedule: str = "scaled_linear"  # that of the base, which the paper does not change
    beta_start: float = 0.00085
    beta_end: float = 0.012


@dataclass(frozen=True, kw_only=True)
class EpsLossTable:
    """Loss weights of noise levels; the papers do not weight them."""

    dsm: str = "plain"  # as in HarivoLossTable
    boost: float = 1.0
    high_share: float = 0.0
    high_noise: int = 600


@dataclass(frozen=True, kw_only=True)
class SamplesTable:
    """Previews during training: one row for each prompt."""

    every: int = 500  # steps between previews; 0: never
    prompts: tuple[str, ...] = ()
    steps: int = 12
    guidance: float = 7.5
    columns: int = 8  # frames shown


MAX_BATCH, MAX_FRAMES, MAX_LR = 65_536, 4096, 10.0  # above these, a number is a slip
BASES = ("pocket", "sd15", "sd21")
DSM = ("plain", "boosted")
SAMPLES_DEPEND_ON = (
    *("frames", "drop", "still_weight"),
    *("drop_references", "drop_anchor", "anchor_window", "max_level", "drop_image"),
)  # keys of [data]; the data themselves are identified by their hash
STARTS = ("model.start", "model.controlnet", "loss.lpips")  # files, which are identified by hashes


@dataclass(frozen=True, kw_only=True)
class BasePlan:
    """The tables that the configs of all systems have. `model` and `loss` are specific to the system."""

    system: ClassVar[str]
    train: TrainTable
    base: BaseTable = field(default_factory=BaseTable)
    data: DataTable = field(default_factory=DataTable)
    samples: SamplesTable = field(default_factory=SamplesTable)
    model: Any
    loss: Any

    def settings(self) -> dict[str, str]:
        """The settings that must not change when a run resumes, in addition to those of the engine."""
        keys = {"base": ("kind", "half"), "data": SAMPLES_DEPEND_ON, "model": None, "loss": None}
        values = {
            f"{table}.{name}": str(value)
            for table, names in keys.items()
            for name, value in asdict(getattr(self, table)).items()
            if names is None or name in names
        }
        return {name: value for name, value in values.items() if name not in STARTS}

    def choices(self) -> dict[str, tuple[str, Sequence[str]]]:
        """Keys with a fixed set of values: key -> (value, allowed values)."""
        return {
            "base.kind": (self.base.kind, BASES),
            "train.precision": (self.train.precision, ("no", "bf16")),
        }

    def least(self) -> dict[str, tuple[float, float]]:
        """Lower limits: key -> (value, smallest allowed value)."""
        return {
            "data.frames": (self.data.frames, 2),
            "data.still_weight": (self.data.still_weight, 1),
            "train.batch": (self.train.batch, 1),
            "train.save_every": (self.train.save_every, 1),
            "train.log_every": (self.train.log_every, 1),
            "train.keep": (self.train.keep, 1),
        }

    def most(self) -> dict[str, tuple[float, float]]:
        """Upper limits: key -> (value, largest allowed value)."""
        shares = {name: getattr(self.train, name) for name in ("lr_decay_share", "ema", "beta2", "lr_end")}
        limits: dict[str, tuple[float, float]] = {f"train.{name}": (value, 1) for name, value in shares.items()}
        limits |= {"data.drop": (self.data.drop, 1), "data.frames": (self.data.frames, MAX_FRAMES)}
        return limits | {"train.batch": (self.train.batch, MAX_BATCH), "train.lr": (self.train.lr, MAX_LR)}
