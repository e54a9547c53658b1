"""The config of HARIVO's training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ...model_patches.harivo.losses import SOFTENINGS, TAU
from .common import DSM, BasePlan


@dataclass(frozen=True, kw_only=True)
class HarivoModelTable:
    """The trained parts. Betas and tokens are the paper's; it does not give the sizes of the mapping network."""

    mid_block: bool = True
    heads: int = 8
    max_frames: int = 32
    group_norm: str = "per_frame"
    beta_schedule: str = "linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    mapping: bool = True
    mapping_width: int = 128
    mapping_heads: int = 8
    tokens: int = 3  # frame-wise tokens per frame; 0: none
    token_layers: int = 2
    token_kernel: int = 1
    start: str = ""  # a motion or HARIVO file to start from, or "bundled" (pocket)


@dataclass(frozen=True, kw_only=True)
class HarivoLossTable:
    """Weights of the terms, all RECONSTRUCTED: the paper does not print them. A term with weight 0 is not computed."""

    reg: float = 0.1
    trs: float = 0.1
    dc: float = 0.01
    softening: str = "sqrt_alpha_bar"
    reg_frames: int = 0  # frames of each clip used for L_reg, chosen at random; 0: all. Ours, to save time
    trs_queries: int = 256  # query pixels of each map, evenly spaced; 0: all. Ours, to save memory
    trs_heads: str = "mean"  # "mean" over the heads, or "all"
    tau: float = TAU
    queue: int = 1024
    dsm: str = "plain"  # "plain" (the paper's), or "boosted": min-SNR with `boost`, for the pocket model. Ours
    boost: float = 1.0
    high_share: float = 0.0  # share of the samples whose timestep is at least high_noise. Ours
    high_noise: int = 600  # timesteps from this one on determine layout and motion


@dataclass(frozen=True, kw_only=True)
class HarivoPlan(BasePlan):
    """A config of HARIVO."""

    system: ClassVar[str] = "harivo"
    model: HarivoModelTable = field(default_factory=HarivoModelTable)
    loss: HarivoLossTable = field(default_factory=HarivoLossTable)

    def choices(self) -> dict[str, tuple[str, Sequence[str]]]:
        return super().choices() | {
            "loss.softening": (self.loss.softening, SOFTENINGS),
            "loss.trs_heads": (self.loss.trs_heads, ("mean", "all")),
            "loss.dsm": (self.loss.dsm, DSM),
        }

    def least(self) -> dict[str, tuple[float, float]]:
        return super().least() | {
            "model.tokens": (self.model.tokens, 0),
            "loss.reg": (self.loss.reg, 0),
            "loss.trs": (self.loss.trs, 0),
            "loss.dc": (self.loss.dc, 0),
            "loss.reg_frames": (self.loss.reg_frames, 0),
            "loss.trs_queries": (self.loss.trs_queries, 0),
            "loss.queue": (self.loss.queue, 1),
        }
