"""The configuration of a HARIVO model, shared by code, files and training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from ..core.config import MotionConfig, at_least_one, known

KERNELS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class MappingConfig:
    """Sizes of the mapping network. The paper gives only its outline; all sizes are RECONSTRUCTED.

    Raises ValueError when a size is below 1 or the heads do not divide the width.
    """

    channels: int = 4
    """Channels of the latent."""
    width: int = 128
    """Hidden channels, between the convolution and the last linear layer."""
    heads: int = 8
    max_frames: int = 32
    """Rows of the positional table, which is the length of the longest clip in frames."""

    def __post_init__(self) -> None:
        at_least_one(self, "mapping config", "channels", "width", "heads", "max_frames")
        if self.width % self.heads or self.width % 2:
            raise ValueError(
                f"mapping config: {self.heads} heads do not divide a width of {self.width}, or the width is odd; "
                "choose an even width that is a multiple of the heads"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into a file's header."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for an unknown name."""
        return cls(**known(cls, values, "mapping config"))


@dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """Sizes of the frame-wise token generator. Stated: 3 tokens, 77 text tokens, 24 frames, width 768 for SD 1.5.

    RECONSTRUCTED: the number of (Linear, SiLU) pairs and the kernel of the convolution.
    Raises ValueError when a size is below 1 or the kernel is neither 1 nor 3.
    """

    context_dim: int
    """Width of the text tokens: 768 for SD 1.5."""
    context_length: int = 77
    """Number of text tokens of one prompt."""
    tokens: int = 3
    """n in the paper: tokens added to each frame."""
    frames: int = 24
    """f in the paper: frames for which the convolution generates tokens; other counts are interpolated."""
    layers: int = 2
    """k in the paper: pairs of Linear and SiLU."""
    kernel: int = 1
    """Size of the convolution over the channels of a token. Channels have no order, so the default is 1."""

    def __post_init__(self) -> None:
        at_least_one(self, "token config", "context_dim", "context_length", "tokens", "frames", "layers")
        if self.kernel not in KERNELS:
            raise ValueError(f"token config: kernel is {self.kernel!r}; choose 1 or 3")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into a file's header."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for an unknown name."""
        return cls(**known(cls, values, "token config"))


@dataclass(frozen=True, kw_only=True)
class HarivoConfig:
    """A whole HARIVO model. `mapping` and `tokens` are None if the model was trained without them.

    Raises ValueError when the parts do not fit together.
    """

    motion: MotionConfig
    mapping: MappingConfig | None = None
    tokens: TokenConfig | None = None

    def __post_init__(self) -> None:
        if self.mapping is not None and self.mapping.max_frames < self.motion.max_frames:
            raise ValueError(
                f"HARIVO config: max_frames is {self.motion.max_frames} for the temporal layers, but only "
                f"{self.mapping.max_frames} for the mapping network; give both the same"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into a file's header."""
        return {
            "motion": self.motion.to_dict(),
            "mapping": self.mapping and self.mapping.to_dict(),
            "tokens": self.tokens and self.tokens.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for an unknown name, here or in a part."""
        settings = known(cls, values, "HARIVO config")
        settings["motion"] = MotionConfig.from_dict(settings["motion"])
        for name, part in (("mapping", MappingConfig), ("tokens", TokenConfig)):
            if settings.get(name) is not None:
                settings[name] = part.from_dict(settings[name])
        return cls(**settings)
