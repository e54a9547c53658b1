"""Where ART-V's parts are attached in a U-Net, and the anchor blocks for all these places, for both networks."""

from typing import Any

from torch import Tensor, nn

from ..core.slots import MIDDLE, Slot
from ..core.temporal import Attention, sdpa
from .anchor import AnchorBlock
from .config import ArtvConfig


def sites(config: ArtvConfig) -> dict[Slot, int]:
    """Slot after each spatial transformer -> number of its down block, in the order of a forward pass."""
    depth, layers = len(config.block_channels), config.layers_per_block
    down = {Slot("down", i, j): i for i in range(depth) if config.attention[i] for j in range(layers)}
    up = {Slot("up", depth - 1 - i, j): i for i in range(depth) if config.attention[i] for j in range(layers + 1)}
    return down | {MIDDLE: depth - 1} | dict(sorted(up.items()))


def stages(config: ArtvConfig) -> list[Slot]:
    """The last layer of each down block: the adapter's feature with the same number is added to its output."""
    return [Slot("down", i, config.layers_per_block - 1) for i in range(len(config.block_channels))]


class AnchorBlocks(nn.Module):
    """An anchor block for every site. Keys: `{down_blocks.I.J|mid_block|up_blocks.I.J}`.

    channels, heads: those of each down block of the network that contains them.
    """

    def __init__(
        self,
        config: ArtvConfig,
        channels: tuple[int, ...],
        heads: tuple[int, ...],
        *,
        ops: Any = nn,
        attention: Attention = sdpa,
    ) -> None:
        super().__init__()
        rules: dict[str, Any] = {"widening": config.anchor_ff, "ops": ops, "attention": attention}
        self._sites = sites(config)
        blocks: dict[tuple[str, int], list[nn.Module]] = {}
        for slot, level in self._sites.items():
            block = AnchorBlock(channels[level], config.token_width, heads[level], **rules)
            blocks.setdefault((slot.part, slot.block), []).append(block)
        depth = range(len(channels))
        self.down_blocks = nn.ModuleList(nn.ModuleList(blocks.get(("down", i), [])) for i in depth)
        self.mid_block = blocks["mid", 0][0]
        self.up_blocks = nn.ModuleList(nn.ModuleList(blocks.get(("up", i), [])) for i in depth)

    def at(self, slot: Slot) -> Any:
        """The AnchorBlock of a slot, or None."""
        if slot not in self._sites:
            return None
        if slot == MIDDLE:
            return self.mid_block
        blocks: Any = self.down_blocks if slot.part == "down" else self.up_blocks
        return blocks[slot.block][slot.layer]

    def change(self, slot: Slot, x: Tensor, tokens: Tensor, options: Any = None) -> Tensor:
        """The output of the slot's block for x, or x itself where there is no block.

        (n, c, h, w), (n, T, k) -> (n, c, h, w). options: passed to the host's attention.
        """
        block = self.at(slot)
        return x if block is None else block(x, tokens, options)
