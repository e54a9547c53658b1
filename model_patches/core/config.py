"""The configuration of a motion model, shared by code, files and training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

GROUPS = 32  # of every GroupNorm in Stable Diffusion's U-Net and in AnimateDiff's modules
GROUP_NORMS = ("per_frame", "per_clip")


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
        for name in ("layers_per_block", "max_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"motion config: {name} is {getattr(self, name)}; it must be at least 1")
        for name in ("group_norm", "image_norm"):
            if getattr(self, name) not in GROUP_NORMS:
                raise ValueError(
                    f"motion config: {name} is {getattr(self, name)!r}; choose one of {', '.join(GROUP_NORMS)}"
                )
        if self.beta_schedule is not None and (self.beta_start is None or self.beta_end is None):
            raise ValueError(f"motion config: beta_schedule {self.beta_schedule!r} needs beta_start and beta_end")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the header of a file."""
        return asdict(self) | {"block_channels": list(self.block_channels)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for an unknown name, so that no setting is silently ignored."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"motion config: unknown setting {', '.join(unknown)}; a newer StillMotion may be needed")
        return cls(**values)


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
    """A copy of `values`. ValueError for a name that is not a field of `cls`: no setting is silently ignored."""
    names = [field.name for field in fields(cls)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(
            f"{label}: unknown setting {', '.join(unknown)}; known are {', '.join(names)}. A newer StillMotion may be "
            "needed"
        )
    return dict(values)


def at_least_one(config: Any, label: str, *names: str) -> None:
    """ValueError unless these fields are whole numbers of at least 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{label}: {name} is {value!r}; it must be a whole number of at least 1")
