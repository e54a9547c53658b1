"""The configurations of VidRD's networks, shared by code, files and training (arXiv 2309.03549)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from ..core.config import GROUP_NORMS, at_least_one, check_betas, known

EMBEDDINGS = ("stream", "branch")


def _check_layers(config: Any, label: str) -> None:
    """Check the fields that both configurations have."""
    object.__setattr__(config, "block_channels", tuple(config.block_channels))
    if not config.block_channels:
        raise ValueError(f"{label}: block_channels is empty; give the channels of each down block")
    at_least_one(config, label, "layers_per_block", "conv_layers", "frames")
    if any(not isinstance(c, int) or c < 1 for c in config.block_channels):
        raise ValueError(f"{label}: block_channels is {config.block_channels}; give whole numbers of at least 1")
    if config.group_norm not in GROUP_NORMS:
        raise ValueError(f"{label}: group_norm is {config.group_norm!r}; choose one of {', '.join(GROUP_NORMS)}")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"{label}: dropout is {config.dropout}; it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class VidrdConfig:
    """Sizes and rules of VidRD's temporal layers, and whether fine-tuned spatial layers are included (section 3.2).

    Raises ValueError, naming the conflicting values, when no model can be built from them.
    """

    block_channels: tuple[int, ...]
    """Channels of the U-Net's down blocks, outermost first; the up blocks have the same in reverse."""
    attention: tuple[bool, ...]
    """Which down blocks have spatial transformers; the middle block always has one."""
    heads: tuple[int, ...]
    """Attention heads in each down block, the same as in its spatial transformers."""
    layers_per_block: int = 2
    """Spatial layers in a down block; an up block has one more."""
    context_dim: int = 1024
    """Width of the text tokens, the input of the fine-tuned cross-attention."""
    spatial: bool = True
    """Whether the model holds the fine-tuned blocks of the spatial transformers."""
    conv_layers: int = 4
    """Convolutions in one Temp-Conv. The paper's parameter count implies 4."""
    dropout: float = 0.1
    """Dropout rate before each convolution, in training."""
    group_norm: str = "per_clip"
    """Statistics of a Temp-Conv's GroupNorm: "per_clip" (the published code) or "per_frame" (ours)."""
    embedding: str = "stream"
    """Where the frame embedding is added: "stream" adds it to the features themselves (the published code; a new model
    then differs from the image model), "branch" only to the input of the attention (ours; a new model then equals the
    image model)."""
    frames: int = 8
    """Frames of a training clip. Other lengths also work, because the embedding is computed for any length."""
    beta_schedule: str | None = None
    """Noise schedule of the training ("linear", "scaled_linear"); None: the base model's."""
    beta_start: float | None = None
    beta_end: float | None = None

    def __post_init__(self) -> None:
        _check_layers(self, "VidRD config")
        for name in ("attention", "heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != len(self.block_channels):
                raise ValueError(
                    f"VidRD config: {name} has {len(getattr(self, name))} entries for {len(self.block_channels)} down "
                    "blocks; give one for each"
                )
        at_least_one(self, "VidRD config", "context_dim")
        for channels, heads in zip(self.block_channels, self.heads, strict=True):
            if heads < 1 or channels % heads or channels % 2:
                raise ValueError(
                    f"VidRD config: {heads} heads do not divide {channels} channels, or the channels are odd; choose "
                    "another number of heads"
                )
        if self.embedding not in EMBEDDINGS:
            raise ValueError(f"VidRD config: embedding is {self.embedding!r}; choose one of {', '.join(EMBEDDINGS)}")
        check_betas(self, "VidRD config")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into a file's header."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for an unknown name."""
        return cls(**known(cls, values, "VidRD config"))


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of the Temp-Convs in an autoencoder's decoder (section 3.4). Raises ValueError as `VidrdConfig` does."""

    block_channels: tuple[int, ...]
    """Channels of the autoencoder's blocks, outermost first; 128, 256, 512, 512 for Stable Diffusion."""
    layers_per_block: int = 2
    """ResNets of an encoder block; a decoder block has one more."""
    conv_layers: int = 3
    """Convolutions in one Temp-Conv."""
    dropout: float = 0.1
    group_norm: str = "per_frame"
    """"per_clip" is the published code, which decodes clip by clip. "per_frame", the default, is ours: a decoded frame
    then depends on a bounded number of neighbours, so that a stream of any length is decoded as one clip."""
    frames: int = 8
    """Frames of a training clip; with "per_clip" also those of a clip when decoding."""

    def __post_init__(self) -> None:
        _check_layers(self, "decoder config")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into a file's header."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for an unknown name."""
        return cls(**known(cls, values, "decoder config"))
