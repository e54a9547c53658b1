"""The configurations of DreamVideo's networks, shared by code, files and training (arXiv 2312.03018)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from ..core.config import GROUPS, at_least_one, known

TEMPORAL = ("frozen", "none")
INJECT = ("skips", "up_blocks")
RANGES = ("unit", "signed")


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """Sizes and rules of the image-retention branch (section 4.2). Defaults are those of Stable Diffusion 2.1.

    Raises ValueError, naming the conflicting values, when no branch can be built from them.
    """

    block_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of the U-Net's down blocks, outermost first."""
    attention: tuple[bool, ...] = (True, True, True, False)
    """Which down blocks have spatial transformers; the middle block always has one."""
    heads: tuple[int, ...] = (5, 10, 20, 20)
    """Attention heads in each down block."""
    layers_per_block: int = 2
    context_dim: int = 1024
    """Width of the text tokens."""
    linear_projection: bool = True
    """Whether the projections of spatial transformers are linear (Stable Diffusion 2) or 1x1 convolutions (1.5)."""
    hint_channels: tuple[int, ...] = (16, 32, 96, 256)
    """Channels of the levels of the image encoder conv_s, which halves the size between them."""
    image_range: str = "unit"
    """Range of the encoder's input: 0 to 1 ("unit", as in ControlNets) or -1 to 1 ("signed"). Reconstructed."""
    inject: str = "skips"
    """Where the branch is added. "skips": a zero convolution for each skip of the U-Net and one for its middle block,
    as the parameter count implies. "up_blocks": one for each block, added to the output of the mirrored up block,
    which is Eq. 3 taken literally."""
    temporal: str = "frozen"
    """Temporal layers in the branch: "frozen", copies of those that the primary U-Net had at the start of training;
    "none": frames are independent. Reconstructed."""

    def __post_init__(self) -> None:
        for name in ("block_channels", "attention", "heads", "hint_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.block_channels or not self.hint_channels:
            raise ValueError("retention config: block_channels and hint_channels cannot be empty")
        for name in ("attention", "heads"):
            if len(getattr(self, name)) != len(self.block_channels):
                raise ValueError(
                    f"retention config: {name} has {len(getattr(self, name))} entries for {len(self.block_channels)} "
                    "down blocks; give one for each"
                )
        at_least_one(self, "retention config", "layers_per_block", "context_dim")
        for channels, heads in zip(self.block_channels, self.heads, strict=True):
            if channels % GROUPS or heads < 1 or channels % heads:
                raise ValueError(
                    f"retention config: {channels} channels must be a multiple of {GROUPS} and of their {heads} heads"
                )
        for name, choices in (("temporal", TEMPORAL), ("inject", INJECT), ("image_range", RANGES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"retention config: {name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )

    @property
    def downscale(self) -> int:
        """Pixels of the image per latent, along one side."""
        return 2 ** (len(self.hint_channels) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into a file's header."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for an unknown name."""
        return cls(**known(cls, values, "retention config"))


@dataclass(frozen=True, kw_only=True)
class DreamVideoConfig:
    """The content of a DreamVideo file: the branch, and optionally the temporal layers that were trained with it.

    The branch works with any motion model on the base model from which it was copied; a file with `motion` is also such
    a motion model.
    """

    branch: RetentionConfig
    layers: Mapping[str, Any] | None = None
    """VidRD's configuration of the temporal layers in the branch and in the U-Net. None: there are no such layers."""
    motion: bool = False
    """Whether the file contains the trained temporal layers of the primary U-Net."""

    def __post_init__(self) -> None:
        if self.layers is None and (self.motion or self.branch.temporal != "none"):
            raise ValueError(
                "DreamVideo config: the model has temporal layers, but their sizes are missing in layers; give VidRD's "
                'configuration of them, or set motion to false and temporal of the branch to "none"'
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into a file's header."""
        layers = None if self.layers is None else dict(self.layers)
        return {"branch": self.branch.to_dict(), "layers": layers, "motion": self.motion}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for an unknown name."""
        settings = known(cls, values, "DreamVideo config")
        settings["branch"] = RetentionConfig.from_dict(settings["branch"])
        return cls(**settings)
