"""DreamVideo's branch with a diffusers U-Net, for training and as the reference for the ComfyUI host.

The residuals are passed in diffusers' arguments for ControlNets; with "up_blocks", forward hooks add them.

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

    `strength` is a factor on the residuals of the branch. `recompute`: discard the branch's activations and recompute
    them for the gradients. `remove()` removes the branch's hooks; the motion model's handle removes its own.
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
        where the null image is white -> the shape of x_t."""
        f = x_t.shape[1]
        x, times, contexts = x_t.flatten(0, 1), t.repeat_interleave(f), context.repeat_interleave(f, 0)
        z_s = self.branch.encode(image).repeat_interleave(f, 0)
        residuals = self._run(x, times, contexts, z_s, f)
        if self.temporal is not None:
            self.temporal.frames = f
        mid = residuals.mid * self.strength
        down = [residual * self.strength for residual in residuals.down]
        if self.branch.config.inject == "up_blocks":
            self._ends = dict(zip(self._slots(), down, strict=True))
            down = self._zero_skips(x, Residuals(down, mid))
        extra: dict[str, Any] = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        eps = self._unet(x, times, contexts, **extra).sample
        self._ends = {}
        return eps.unflatten(0, (-1, f))

    def _run(self, *inputs: Any) -> Residuals:
        if not self.recompute or not torch.is_grad_enabled():
            return self.branch(*inputs)
        residuals: Any = checkpoint(self.branch, *inputs, use_reentrant=False)
        return residuals

    def remove(self) -> None:
        """Remove the hooks, which restores the U-Net."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _slots(self) -> list[Slot]:
        """The end of the up block for each down block, outermost first."""
        blocks = len(self.branch.config.block_channels)
        return [Slot("up", blocks - 1 - i, self.branch.config.layers_per_block) for i in range(blocks)]

    def _at(self, slot: Slot) -> Any:
        def hook(_layer: nn.Module, _args: tuple, output: Any) -> Any:
            residual = self._ends.get(slot)
            if residual is None:
                return None
            return (output[0] + residual, *output[1:]) if isinstance(output, tuple) else output + residual

        return hook

    def _zero_skips(self, x: Tensor, residuals: Residuals) -> list[Tensor]:
        """Zeros for the skips: diffusers requires a residual for each skip if there is one for the middle block."""
        count = len(residuals.down) * (self.branch.config.layers_per_block + 1)
        return [torch.zeros(1, device=x.device, dtype=x.dtype)] * count


def attach(unet: UNet2DConditionModel, branch: RetentionBranch, temporal: motion.Handle | None = None) -> Handle:
    """Attach a branch to `unet`. ValueError when the sizes of the two differ."""
    check_base(unet, branch)
    return Handle(unet, branch, temporal)


def start_from(branch: RetentionBranch, unet: UNet2DConditionModel) -> None:
    """Copy the U-Net's down and middle blocks into the branch (section 4.2). ValueError when the sizes differ."""
    check_base(unet, branch)
    branch.start_from(unet.state_dict())


def check_base(unet: UNet2DConditionModel, branch: RetentionBranch) -> None:
    """ValueError unless the branch was built for a U-Net of these sizes."""
    config = branch.config
    expected = {
        "block channels": config.block_channels,
        "layers per block": config.layers_per_block,
        "text width": config.context_dim,
    }
    check_sizes(unet, expected, "retention branch: it was built")
