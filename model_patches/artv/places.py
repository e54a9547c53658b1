"""Where ART-V's parts sit in a U-Net, and the anchor blocks of all these places. Both networks have the same."""

from typing import Any

from torch import Tensor, nn

from ..core.slots import MIDDLE, Slot
from ..core.temporal import Attention, sdpa
from .anchor import AnchorBlock
from .config import ArtvConfig


def sites(config: ArtvConfig) -> dict[Slot, int]:
    """Slot behind each spatial transformer -> number of its down block, in the order of a forward pass."""
    depth, layers = len(config.block_channels), config.layers_per_block
    down = {Slot("down", i, j): i for i in range(depth) if config.attention[i] for j in range(layers)}
    up = {Slot("up", depth - 1 - i, j): i for i in range(depth) if config.attention[i] for j in range(layers + 1)}
    return down | {MIDDLE: depth - 1} | dict(sorted(up.items()))


def stages(config: ArtvConfig) -> list[Slot]:
    """The last layer of each down block: behind it the adapter's feature of that number is added."""
    return [Slot("down", i, config.layers_per_block - 1) for i in range(len(config.block_channels))]


class AnchorBlocks(nn.Module):
    """An anchor block for every site. Keys: `{down_blocks.I.J|mid_block|up_blocks.I.J}`.

    channels, heads: of each down block of the network that they sit in.
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
        built: dict[tuple[str, int], list[nn.Module]] = {}
        for slot, level in self._sites.items():
            block = AnchorBlock(channels[level], config.token_width, heads[level], **rules)
            built.setdefault((slot.part, slot.block), []).append(block)
        depth = range(len(channels))
        self.down_blocks = nn.ModuleList(nn.ModuleList(built.get(("down", i), [])) for i in depth)
        self.mid_block = built["mid", 0][0]
        self.up_blocks = nn.ModuleList(nn.ModuleList(built.get(("up", i), [])) for i in depth)

    def at(self, slot: Slot) -> Any:
        """The AnchorBlock of a slot; None where there is none."""
        if slot not in self._sites:
            return None
        if slot == MIDDLE:
            return self.mid_block
        blocks: Any = self.down_blocks if slot.part == "down" else self.up_blocks
        return blocks[slot.block][slot.layer]

    def change(self, slot: Slot, x: Tensor, tokens: Tensor) -> Tensor:  # (n, c, h, w), (n, T, k) -> (n, c, h, w)
        """x behind the block of a slot; x itself where there is none."""
        block = self.at(slot)
        return x if block is None else block(x, tokens)
