"""What ART-V's networks are built from: the record that code, files and training share (arXiv 2311.18834, Table 2)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from ..core.config import at_least_one, known

ANCHORS = ("latent", "clip")
LEVELS = ("added", "inside", "none")
STATICS = ("consistent", "paper", "reversed")
STATIC_REFERENCES = ("clean", "augmented")
WHAT = "ART-V config"


@dataclass(frozen=True, kw_only=True)
class ArtvConfig:
    """Sizes of the parts beside the image U-Net and of the mask network, and the choices that the paper leaves open.

    Raises ValueError when the numbers cannot make a model, naming the ones that clash.
    """

    block_channels: tuple[int, ...]
    """Channels of the image U-Net's down blocks, outermost first; the up blocks have the same in reverse."""
    attention: tuple[bool, ...]
    """Which down blocks have spatial transformers; the middle block always has one."""
    heads: tuple[int, ...]
    """Attention heads of the anchor blocks in each down block. The paper: 64 channels a head."""
    mask_channels: tuple[int, ...]
    """Channels of the mask network's down blocks."""
    mask_heads: tuple[int, ...]
    """Heads in the mask network. The paper: 32 channels a head."""
    layers_per_block: int = 2
    """Spatial layers in a down block of either network; an up block has one more."""
    context_dim: int = 1024
    """Width of the text tokens, which the mask network reads."""
    latent_channels: int = 4
    adapter_blocks: int = 2
    """Residual blocks in a stage of an adapter ("nums_rb" of T2I-Adapter). Fewer make a smaller file (ours)."""
    anchor: str = "latent"
    """What the anchor's tokens are: "latent", its latent in patches (reconstructed), or "clip", image tokens of a CLIP
    model that the caller gives (an alternative that the parameter counts speak against)."""
    anchor_patch: int = 4
    """"latent": a token is a square of so many latents on a side."""
    anchor_positions: bool = True
    """"latent": four more numbers in a token tell where the patch is (reconstructed)."""
    anchor_width: int = 1280
    """"clip": width of the given tokens."""
    anchor_ff: int = 4
    """The feed-forward of an anchor block is so many times as wide inside. Less makes a smaller file (ours)."""
    level_embedding: str = "added"
    """How the level of the noise on references and anchor enters the time embedding, one MLP for both (reconstructed):
    "added" behind the MLP, "inside" before it, or "none"."""
    static: str = "consistent"
    """The static part of Eq. 6: "consistent" (ours: a noise estimate at every level), "paper" (y_ref - y_t, as the text
    has it) or "reversed" (y_t - y_ref)."""
    static_reference: str = "clean"
    """y_ref in it: the frame before as it is ("clean"), or with the noise of the augmentation ("augmented")."""

    def __post_init__(self) -> None:
        for name in ("block_channels", "attention", "heads", "mask_channels", "mask_heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.block_channels:
            raise ValueError(f"{WHAT}: block_channels is empty; give the channels of each down block")
        for name in ("attention", "heads", "mask_channels", "mask_heads"):
            if len(getattr(self, name)) != len(self.block_channels):
                raise ValueError(
                    f"{WHAT}: {name} has {len(getattr(self, name))} entries for {len(self.block_channels)} down "
                    "blocks; give one for each"
                )
        sizes = ("layers_per_block", "context_dim", "latent_channels", "adapter_blocks")
        at_least_one(self, WHAT, *sizes, "anchor_patch", "anchor_width", "anchor_ff")
        _check_heads(self.block_channels, self.heads)
        _check_heads(self.mask_channels, self.mask_heads)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{WHAT}: {name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")

    @property
    def token_width(self) -> int:
        """Numbers in one token of the anchor: 68 in the paper's sizes."""
        if self.anchor == "clip":
            return self.anchor_width
        return self.latent_channels * self.anchor_patch**2 + 4 * self.anchor_positions

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into a file's header."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for an unknown name."""
        return cls(**known(cls, values, WHAT))


_CHOICES = {
    "anchor": ANCHORS,
    "level_embedding": LEVELS,
    "static": STATICS,
    "static_reference": STATIC_REFERENCES,
}


def _check_heads(channels: tuple[int, ...], heads: tuple[int, ...]) -> None:
    for width, count in zip(channels, heads, strict=True):
        if width < 1 or width % 2 or count < 1 or width % count:
            raise ValueError(
                f"{WHAT}: {count} heads do not divide {width} channels, or the channels are odd; choose another number "
                "of heads"
            )


SD21 = ArtvConfig(  # the paper's (Table 2)
    block_channels=(320, 640, 1280, 1280),
    attention=(True, True, True, False),
    heads=(5, 10, 20, 20),
    mask_channels=(64, 128, 256, 256),
    mask_heads=(2, 4, 8, 8),
)
SD15 = ArtvConfig(**SD21.to_dict() | {"heads": (8, 8, 8, 8), "context_dim": 768})
POCKET = ArtvConfig(  # for the bundled pocket Stable Diffusion; narrow, as its file is small
    block_channels=(64, 128, 128),
    attention=(False, True, True),
    heads=(4, 4, 4),
    mask_channels=(24, 32, 32),
    mask_heads=(2, 2, 2),
    layers_per_block=1,
    context_dim=128,
    adapter_blocks=1,
    anchor_ff=1,
)
