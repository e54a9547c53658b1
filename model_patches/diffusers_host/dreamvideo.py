"""DreamVideo's branch beside a diffusers U-Net, for training and as the reference of the other host.

The residuals enter by diffusers' own arguments for ControlNets; "up_blocks" by forward hooks of the layers.

Shapes: b clips, f frames; the U-Net's batch is (b f, c, h, w), the frames of a clip one after another.
"""

from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from ..core.slots import Slot
from ..dreamvideo.retention import Residuals, RetentionBranch
from . import motion
from .sizes import check_sizes


class Handle:
    """A branch attached to a U-Net. `temporal`: the handle of the U-Net's motion model, if it has one.

    `strength` is a factor on what the branch adds. `recompute`: forget the branch's activations and compute them again
    for the gradients. `remove()` takes the branch's hooks out; the motion model's are its own handle's.
    """

    def __init__(
        self, unet: UNet2DConditionModel, branch: RetentionBranch, temporal: motion.Handle | None = None
    ) -> None:
        self.branch, self.temporal, self.strength, self.recompute = branch, temporal, 1.0, False
        self._unet = unet
        self._ends: dict[Slot, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        if branch.config.inject == "up_blocks":
            self._hooks = [motion.address(unet, slot).register_forward_hook(self._at(slot)) for slot in self._slots()]

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor, image: Tensor) -> Tensor:
        """eps of the whole model: x_t (b, f, c, h, w), t (b,), context (b, L, d), image (b, 3, s h, s w) from 0 to 1,
        the null image white -> like x_t."""
        f = x_t.shape[1]
        x, times, contexts = x_t.flatten(0, 1), t.repeat_interleave(f), context.repeat_interleave(f, 0)
        z_s = self.branch.encode(image).repeat_interleave(f, 0)
        found = self._run(x, times, contexts, z_s, f)
        if self.temporal is not None:
            self.temporal.frames = f
        mid = found.mid * self.strength
        down = [residual * self.strength for residual in found.down]
        if self.branch.config.inject == "up_blocks":
            self._ends = dict(zip(self._slots(), down, strict=True))
            down = self._nothing(x, Residuals(down, mid))
        extra: dict[str, Any] = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        eps = self._unet(x, times, contexts, **extra).sample
        self._ends = {}
        return eps.unflatten(0, (-1, f))

    def _run(self, *inputs: Any) -> Residuals:
        if not self.recompute or not torch.is_grad_enabled():
            return self.branch(*inputs)
        found: Any = checkpoint(self.branch, *inputs, use_reentrant=False)
        return found

    def remove(self) -> None:
        """Take the hooks out; the U-Net is then the one it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _slots(self) -> list[Slot]:
        """The end of the up block of each down block, the outermost first."""
        blocks = len(self.branch.config.block_channels)
        return [Slot("up", blocks - 1 - i, self.branch.config.layers_per_block) for i in range(blocks)]

    def _at(self, slot: Slot) -> Any:
        def hook(_layer: nn.Module, _args: tuple, output: Any) -> Any:
            added = self._ends.get(slot)
            if added is None:
                return None
            return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

        return hook

    def _nothing(self, x: Tensor, found: Residuals) -> list[Tensor]:
        """Zeros for the skips: diffusers wants one for each where there is one for the middle block."""
        count = len(found.down) * (self.branch.config.layers_per_block + 1)
        return [torch.zeros(1, device=x.device, dtype=x.dtype)] * count


def attach(unet: UNet2DConditionModel, branch: RetentionBranch, temporal: motion.Handle | None = None) -> Handle:
    """Put a branch beside `unet`. ValueError when the sizes of the two differ."""
    check_base(unet, branch)
    return Handle(unet, branch, temporal)


def start_from(branch: RetentionBranch, unet: UNet2DConditionModel) -> None:
    """Begin as the U-Net is now: its down and middle blocks (section 4.2). ValueError when the sizes differ."""
    check_base(unet, branch)
    branch.start_from(unet.state_dict())


def check_base(unet: UNet2DConditionModel, branch: RetentionBranch) -> None:
    """The branch was made for a U-Net of these sizes."""
    config = branch.config
    needed = {
        "block channels": config.block_channels,
        "layers per block": config.layers_per_block,
        "text width": config.context_dim,
    }
    check_sizes(unet, needed, "retention branch: it was made")
