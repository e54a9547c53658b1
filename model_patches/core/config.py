"""The configuration of a motion model, shared by code, files and training."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

GROUPS = 32  # of every GroupNorm in Stable Diffusion's U-Net and in AnimateDiff's modules
GROUP_NORMS = ("per_frame", "per_clip")
BETA_SCHEDULES = ("linear", "scaled_linear")
MOST, MOST_BLOCKS, MOST_CHARACTERS = 2**20, 64, 200  # of any number, list and word in a config; real ones are far below


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Sizes and rules of a motion model with AnimateDiff's structure (Guo et al. 2023, arXiv:2307.04725v2).

    Raises ValueError, naming the conflicting values, when no model can be built from them.
    """

    block_channels: tuple[int, ...]
    """Channels of the U-Net's down blocks, outermost first; the up blocks have the same in reverse."""
    layers_per_block: int = 2
    """Spatial layers in a down block; an up block has one more."""
    mid_block: bool = False
    """Whether the middle block has a module (AnimateDiff v2 does, v1 and v3 do not)."""
    heads: int = 8
    max_frames: int = 32
    """Rows of the positional table, which is the length of the longest clip in frames."""
    group_norm: str = "per_frame"
    """Statistics of a module's GroupNorm: "per_frame" (the released weights) or "per_clip" (as in diffusers)."""
    image_norm: str = "per_frame"
    """Statistics of the image U-Net's GroupNorms with this model: "per_frame", or "per_clip" for AnimateDiff v1."""
    position_encoding: bool = True
    beta_schedule: str | None = None
    """Noise schedule of the training, "linear" or "scaled_linear" as diffusers calls them; None: the base model's."""
    beta_start: float | None = None
    beta_end: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_channels", tuple(self.block_channels))
        if not self.block_channels:
            raise ValueError("motion config: block_channels is empty; give the channels of each down block")
        for channels in self.block_channels:
            check_channels(channels, self.heads)
        at_least_one(self, "motion config", "layers_per_block", "max_frames")
        for name in ("group_norm", "image_norm"):
            if getattr(self, name) not in GROUP_NORMS:
                raise ValueError(
                    f"motion config: {name} is {getattr(self, name)!r}; choose one of {', '.join(GROUP_NORMS)}"
                )
        check_betas(self, "motion config")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the header of a file."""
        return asdict(self) | {"block_channels": list(self.block_channels)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for an unknown name, so that no setting is silently ignored."""
        return cls(**known(cls, values, "motion config"))


def check_channels(channels: int, heads: int) -> None:
    """ValueError unless the channels are a multiple of GroupNorm's groups and of the heads."""
    if channels < 1 or channels % GROUPS:
        raise ValueError(
            f"motion module: {channels} channels are not a multiple of {GROUPS}, which its GroupNorm needs"
        )
    if heads < 1 or channels % heads:
        raise ValueError(
            f"motion module: {heads} heads do not divide {channels} channels; choose another number of heads"
        )


def known(cls: type, values: Mapping[str, Any], label: str) -> dict[str, Any]:
    """A copy of `values`. ValueError for a name that is not a field of `cls`, as no setting is silently ignored, for a
    field that is missing, and for a value of another type or size than any model has (`_fault`)."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{label}: it is {_short(values)}; it must be a table of settings")
    all_fields, kinds = {field.name: field for field in fields(cls)}, get_type_hints(cls)
    unknown = sorted(str(name) for name in set(values) - set(all_fields))
    if unknown:
        raise ValueError(
            f"{label}: unknown setting {', '.join(unknown[:3])}; known are {', '.join(all_fields)}. A newer "
            "StillMotion may be needed"
        )
    for name, field in all_fields.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{label}: {name} is missing")
    for name, value in values.items():
        if fault := _fault(value, kinds[name]):
            raise ValueError(f"{label}: {name} is {_short(value)}; it must be {fault}")
    return dict(values)


def _fault(value: Any, kind: Any) -> str:
    """What a value of a config must be, if it is not; "" otherwise. kind: the annotation of its field."""
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        return _fault_of_union(value, get_args(kind))
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or len(value) > MOST_BLOCKS:
            return f"a list of at most {MOST_BLOCKS} values"
        return next((f"a list, each {fault}" for item in value if (fault := _fault(item, get_args(kind)[0]))), "")
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is int:
        is_number = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST
        return "" if is_number else f"a whole number up to {MOST}"
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST
        return "" if is_number else f"a number up to {MOST}"
    if kind is str:
        return "" if isinstance(value, str) and len(value) <= MOST_CHARACTERS else "a word"
    return "" if isinstance(value, Mapping) or is_dataclass(value) else "a table of settings"


def _fault_of_union(value: Any, kinds: tuple[Any, ...]) -> str:
    if value is None:
        return "" if type(None) in kinds else "a value"
    faults = [_fault(value, kind) for kind in kinds if kind is not type(None)]
    return "" if "" in faults else " or ".join([*faults, "null"])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def check_betas(config: Any, label: str) -> None:
    """ValueError unless a config names a noise schedule with both of its ends, or none."""
    schedule, start, end = config.beta_schedule, config.beta_start, config.beta_end
    if schedule is None:
        return
    if schedule not in BETA_SCHEDULES:
        raise ValueError(
            f"{label}: beta_schedule is {schedule!r}; choose one of {', '.join(BETA_SCHEDULES)}, or null for that of "
            "the base"
        )
    if start is None or end is None:
        raise ValueError(f"{label}: beta_schedule {schedule!r} needs beta_start and beta_end")
    if not 0 < start <= end < 1:
        raise ValueError(f"{label}: beta_start is {start} and beta_end is {end}; they must rise between 0 and 1")


def at_least_one(config: Any, label: str, *names: str) -> None:
    """ValueError unless these fields are whole numbers of at least 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{label}: {name} is {value!r}; it must be a whole number of at least 1")
