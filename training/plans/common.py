"""The tables of a training's config, one class each; what they belong to and how they are read: `config`.

A field that a paper leaves open says so.
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
class LayersTable:
    """VidRD's temporal layers. Their number, dropout and embedding are those of the published code."""

    conv_layers: int = 4
    dropout: float = 0.1
    group_norm: str = "per_clip"  # or "per_frame": ours
    embedding: str = "stream"  # or "branch": ours, a fresh model is then the image model
    beta_schedule: str = "scaled_linear"  # the base's own, which the paper does not change
    beta_start: float = 0.00085
    beta_end: float = 0.012


@dataclass(frozen=True, kw_only=True)
class EpsLossTable:
    """Which noise levels count how much; the paper has none of this."""

    dsm: str = "plain"  # as in LossTable
    boost: float = 1.0
    high_share: float = 0.0
    high_noise: int = 600


@dataclass(frozen=True, kw_only=True)
class SamplesTable:
    """Pictures while training: one row a prompt."""

    every: int = 500  # steps, 0: never
    prompts: tuple[str, ...] = ()
    steps: int = 12
    guidance: float = 7.5
    columns: int = 8  # frames shown


BASES = ("pocket", "sd15", "sd21")
DSM = ("plain", "boosted")
SAMPLES_DEPEND_ON = (
    *("frames", "drop", "still_weight"),
    *("drop_references", "drop_anchor", "anchor_window", "max_level", "drop_image"),
)  # of [data]; the data themselves are known by their hash
STARTS = ("model.start", "model.controlnet", "loss.lpips")  # files: what of them lasts is known by its hash


@dataclass(frozen=True, kw_only=True)
class BasePlan:
    """What the configs of all systems have. `model` and `loss` are tables of the system."""

    system: ClassVar[str]
    train: TrainTable
    base: BaseTable = field(default_factory=BaseTable)
    data: DataTable = field(default_factory=DataTable)
    samples: SamplesTable = field(default_factory=SamplesTable)
    model: Any
    loss: Any

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
