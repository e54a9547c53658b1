"""The configuration of ART-V's networks, shared by code, files and training (arXiv 2311.18834, Table 2)."""

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
    """Sizes of the parts added to the image U-Net and of the mask network, and the choices that the paper leaves open.

    Raises ValueError, naming the conflicting values, when no model can be built from them.
    """

    block_channels: tuple[int, ...]
    """Channels of the image U-Net's down blocks, outermost first; the up blocks have the same in reverse."""
    attention: tuple[bool, ...]
    """Which down blocks have spatial transformers; the middle block always has one."""
    heads: tuple[int, ...]
    """Attention heads of the anchor blocks in each down block. The paper uses 64 channels per head."""
    mask_channels: tuple[int, ...]
    """Channels of the mask network's down blocks."""
    mask_heads: tuple[int, ...]
    """Attention heads in the mask network. The paper uses 32 channels per head."""
    layers_per_block: int = 2
    """Spatial layers in a down block of either network; an up block has one more."""
    context_dim: int = 1024
    """Width of the text tokens, which the mask network reads."""
    latent_channels: int = 4
    adapter_blocks: int = 2
    """Residual blocks per stage of an adapter ("nums_rb" of T2I-Adapter). Fewer make a smaller file (ours)."""
    anchor: str = "latent"
    """The anchor's tokens: "latent", patches of its latent (reconstructed), or "clip", image tokens of a CLIP model
    that the caller provides (an alternative that does not match the parameter counts)."""
    anchor_patch: int = 4
    """For "latent": side length of a patch in latents."""
    anchor_positions: bool = True
    """For "latent": add four numbers with the position of the patch to each token (reconstructed)."""
    anchor_width: int = 1280
    """For "clip": width of the tokens."""
    anchor_ff: int = 4
    """Expansion factor of the feed-forward of an anchor block. A smaller one makes a smaller file (ours)."""
    level_embedding: str = "added"
    """How the noise level of references and anchor enters the time embedding, with one MLP for both (reconstructed):
    "added" after the MLP, "inside" before it, or "none"."""
    static: str = "consistent"
    """The static part of Eq. 6: "consistent" (ours: a noise estimate at every level), "paper" (y_ref - y_t, as the text
    says) or "reversed" (y_t - y_ref)."""
    static_reference: str = "clean"
    """y_ref of Eq. 6: the previous frame without noise ("clean") or with the augmentation noise ("augmented")."""

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
        """Width of one token of the anchor: 68 for the paper's sizes."""
        if self.anchor == "clip":
            return self.anchor_width
        return self.latent_channels * self.anchor_patch**2 + 4 * self.anchor_positions

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the header of a file."""
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


SD21 = ArtvConfig(  # the sizes of the paper (Table 2)
    block_channels=(320, 640, 1280, 1280),
    attention=(True, True, True, False),
    heads=(5, 10, 20, 20),
    mask_channels=(64, 128, 256, 256),
    mask_heads=(2, 4, 8, 8),
)
SD15 = ArtvConfig(**SD21.to_dict() | {"heads": (8, 8, 8, 8), "context_dim": 768})
POCKET = ArtvConfig(  # for the bundled pocket Stable Diffusion; narrow, to keep the file small
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
