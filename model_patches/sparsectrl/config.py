"""The configuration of a SparseCtrl network (Guo et al. 2023, arXiv:2311.16933)."""

from dataclasses import dataclass

from ..core.config import MotionConfig

LATENT, PIXELS = "latent", "pixels"


@dataclass(frozen=True, kw_only=True)
class SparseConfig:
    """Sizes and rules of a SparseCtrl network. Defaults are those of Stable Diffusion 1.5.

    Raises ValueError, naming the conflicting values, when no temporal layers can be built from them.
    """

    block_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of the U-Net's down blocks, outermost first."""
    attention: tuple[bool, ...] = (True, True, True, False)
    """Which down blocks have spatial transformers."""
    heads: tuple[int, ...] = (8, 8, 8, 8)
    """Attention heads of the spatial transformers in each down block."""
    layers_per_block: int = 2
    context_dim: int = 768
    """Width of the text tokens."""
    linear_projection: bool = False
    """Whether the projections of spatial transformers are linear or 1x1 convolutions."""
    hint: str = LATENT
    """What the network sees of an image: its latent, through one convolution ("latent", the RGB files), or its pixels,
    through an encoder ("pixels", the scribble files)."""
    hint_channels: tuple[int, ...] = (16, 32, 96, 256)
    """For "pixels": channels of the levels of the encoder, which halves the size between them."""
    max_frames: int = 32
    """Rows of the positional table of the temporal layers: the longest clip in frames."""
    motion_heads: int = 8
    """Attention heads of the temporal layers."""
    attentions: int = 1
    """Attentions over the frames in each temporal layer; AnimateDiff's motion models have two."""

    @property
    def inject(self) -> str:
        """As in a ControlNet: one zero convolution for each skip of the U-Net."""
        return "skips"

    @property
    def inputs(self) -> int:
        """Channels of the hint: those of an image, and the mask that says which frames have one."""
        return (4 if self.hint == LATENT else 3) + 1

    @property
    def downscale(self) -> int:
        """Pixels of the hint per latent, along one side."""
        return 1 if self.hint == LATENT else 2 ** (len(self.hint_channels) - 1)

    def motion(self) -> MotionConfig:
        """The configuration of the temporal layers, which are those of AnimateDiff."""
        return MotionConfig(
            block_channels=self.block_channels,
            layers_per_block=self.layers_per_block,
            heads=self.motion_heads,
            max_frames=self.max_frames,
        )
