"""VidRD's trained parts, which are added to the frozen image U-Net (arXiv 2309.03549, section 3.2 and figure 3).

A Temp-Conv after every ResBlock, a Temp-Attn in every spatial transformer, and the fine-tuned blocks of these
transformers. With the sizes of Stable Diffusion 2.1 there are 316.49 M temporal and 565.29 M trained parameters; the
paper prints 316M and 565M.
"""

from collections.abc import Collection
from typing import Any

from torch import nn

from ..core.slots import Part, Slot
from ..core.temporal import Attention, sdpa
from .config import VidrdConfig
from .layers import SpatialBlock, TemporalAttention, TemporalConv

PARTS: tuple[Part, ...] = ("down", "mid", "up")
TEMPORAL = (".temp_convs.", ".temp_norm.", ".temp_attn.")


def is_temporal(key: str) -> bool:
    """Whether a weight belongs to the temporal layers and not to the fine-tuned spatial layers."""
    return any(name in key for name in TEMPORAL)


def places(config: VidrdConfig, parts: Collection[Part] = PARTS) -> dict[Slot, int]:
    """Slot of every temporal layer in these parts -> channels, in the order of a forward pass."""
    channels_by_slot: dict[Slot, int] = {}

    def layer(part: Any, block: int, number: int, channels: int, attention: bool) -> None:
        channels_by_slot[Slot(part, block, number, "resnet")] = channels
        if attention:
            channels_by_slot[Slot(part, block, number, "attended")] = channels

    sizes = list(zip(config.block_channels, config.attention, strict=True))
    for i, (channels, attention) in enumerate(sizes):
        for j in range(config.layers_per_block):
            layer("down", i, j, channels, attention)
    layer("mid", 0, 0, sizes[-1][0], True)
    layer("mid", 0, 1, sizes[-1][0], False)
    for i, (channels, attention) in enumerate(reversed(sizes)):
        for j in range(config.layers_per_block + 1):
            layer("up", i, j, channels, attention)
    return {slot: channels for slot, channels in channels_by_slot.items() if slot.part in parts}


class _Named(nn.Module):
    """Adds a level to the keys."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class VidrdModel(nn.Module):
    """The layers of all slots of one U-Net. Its state dict is the content of a file, with the names of the authors'
    checkpoint and without the frozen weights. `parts`: the parts of the U-Net that get layers.

    Keys: `{down_blocks.I|mid_block|up_blocks.I}.temp_convs.J.convs.N` and
    `....attentions.J.transformer_blocks.0.{temp_norm,temp_attn,norm1,attn1,...}`, spatial layers only with
    `config.spatial`. There is no forward method: a host calls the layer of each slot at its place.
    """

    def __init__(
        self, config: VidrdConfig, *, parts: Collection[Part] = PARTS, ops: Any = nn, attention: Attention = sdpa
    ) -> None:
        super().__init__()
        self.config, self.parts = config, parts
        blocks: dict[tuple[str, int], tuple[list[nn.Module], list[nn.Module]]] = {}
        for slot, channels in places(config, parts).items():
            convs, attentions = blocks.setdefault((slot.part, slot.block), ([], []))
            if slot.place == "resnet":
                rules = {"dropout": config.dropout, "group_norm": config.group_norm}
                convs.append(TemporalConv(channels, layers=config.conv_layers, ops=ops, **rules))
            else:
                attentions.append(_Named(transformer_blocks=nn.ModuleList([self._block(slot, ops, attention)])))
        self.down_blocks, mid, self.up_blocks = (
            nn.ModuleList(_level(*layers) for (side, _), layers in blocks.items() if side == part) for part in PARTS
        )
        self.mid_block = mid[0] if mid else None

    def _block(self, slot: Slot, ops: Any, attention: Attention) -> TemporalAttention:
        config = self.config
        level = {"down": slot.block, "mid": -1, "up": -1 - slot.block}[slot.part]
        channels = config.block_channels[level]
        rules: dict[str, Any] = {"heads": config.heads[level], "embedding": config.embedding}
        if config.spatial:
            return SpatialBlock(channels, config.context_dim, ops=ops, attention=attention, **rules)
        return TemporalAttention(channels, ops=ops, attention=attention, **rules)

    def modules_by_slot(self) -> dict[Slot, Any]:
        """Slot -> TemporalConv or TemporalAttention, in the order of a forward pass."""
        blocks: dict[str, Any] = {"down": self.down_blocks, "mid": [self.mid_block], "up": self.up_blocks}
        modules: dict[Slot, Any] = {}
        for slot in places(self.config, self.parts):
            block = blocks[slot.part][slot.block]
            if slot.place == "resnet":
                modules[slot] = block.temp_convs[slot.layer]
            else:
                modules[slot] = block.attentions[slot.layer].transformer_blocks[0]
        return modules


def _level(convs: list[nn.Module], attentions: list[nn.Module]) -> _Named:
    parts: dict[str, nn.Module] = {"attentions": nn.ModuleList(attentions)} if attentions else {}
    return _Named(temp_convs=nn.ModuleList(convs), **parts)
