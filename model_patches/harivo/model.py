"""A whole HARIVO model: temporal layers, mapping network, frame-wise tokens (arXiv 2410.07763, figure 3)."""

from typing import Any

from torch import nn

from ..core.temporal import Attention, MotionModel, sdpa
from .config import HarivoConfig
from .mapping import MappingNetwork
from .tokens import FrameTokens

COMPONENTS = ("temporal", "mapping", "tokens")


class HarivoModel(nn.Module):
    """The trained parts that are added to a frozen image U-Net; its state dict is the content of a file.

    Keys: `temporal.*` in AnimateDiff's layout, `mapping.*`, `tokens.*`; an absent part has no keys and is None here.
    There is no forward method: a host runs each part at its place.
    """

    def __init__(self, config: HarivoConfig, *, ops: Any = nn, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        self.temporal = MotionModel(config.motion, ops=ops, attention=attention)
        self.mapping = MappingNetwork(config.mapping, ops=ops, attention=attention) if config.mapping else None
        self.tokens = FrameTokens(config.tokens, ops=ops) if config.tokens else None
