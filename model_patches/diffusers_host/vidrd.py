"""A VidRD model in a diffusers U-Net: temporal layers through hooks of torch, fine-tuned blocks as their weights.

The U-Net's modules and keys stay as they are; `remove()` takes the hooks out and puts the image model's weights back.

Shapes: b clips, f frames, p pixels; the U-Net's batch is (b f, c, h, w), its tokens (b f, p, c), frame after frame.
"""

from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.slots import Slot
from ..vidrd.model import VidrdModel, is_temporal
from . import motion
from .sizes import check_sizes


class Handle(motion.Handle):
    """An attached VidRD model. Set `frames` before each forward; `strength` is a factor on what its layers add.

    With `frames = 1` or `strength = 0` the temporal layers are passed by. The fine-tuned blocks of a model that holds
    some are the U-Net's until `remove()`.
    """

    def __init__(self, unet: UNet2DConditionModel, model: VidrdModel) -> None:
        self._residual: dict[Slot, Tensor] = {}
        super().__init__(unet, model)
        self._unet = unet
        self._image_weights = _exchange(unet, spatial_weights(model))

    def remove(self) -> None:
        """Take the hooks out and put the image model's weights back; the U-Net is then the one it was."""
        super().remove()
        _exchange(self._unet, self._image_weights)
        self._image_weights = {}

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """eps of the whole model: x_t (b, f, c, h, w), t (b,), context (b, L, d) -> like x_t. Sets `frames` to f."""
        f = self.frames = x_t.shape[1]
        times, contexts = t.repeat_interleave(f), context.repeat_interleave(f, 0)
        return self._unet(x_t.flatten(0, 1), times, contexts).sample.unflatten(0, (-1, f))

    def _enter(self, unet: UNet2DConditionModel, slot: Slot, module: Any) -> list[RemovableHandle]:
        if slot.place != "attended":
            return super()._enter(unet, slot, module)
        block: Any = motion.address(unet, slot)

        def see(_norm: nn.Module, args: tuple) -> None:
            self._residual[slot] = args[0]  # what cross-attention will be added to

        def change(_attention: nn.Module, _args: tuple, output: Tensor) -> Tensor | None:
            self.calls += 1
            x, frames = self._residual.pop(slot), self.frames
            if frames is None or frames == 1 or self.strength == 0:
                return None
            return torch.add(output, module.update(x + output, frames), alpha=self.strength)

        return [block.norm2.register_forward_pre_hook(see), block.attn2.register_forward_hook(change)]


def attach(unet: UNet2DConditionModel, model: VidrdModel) -> Handle:
    """Put the temporal layers where they belong, and the fine-tuned blocks into the U-Net where the model holds some.

    ValueError when the sizes of the two differ.
    """
    check_base(unet, model)
    return Handle(unet, model)


def check_base(unet: UNet2DConditionModel, model: VidrdModel) -> None:
    """The model was built for a U-Net of these sizes, transformers and text."""
    config = model.config
    needed: dict[str, Any] = {
        "block channels": config.block_channels,
        "layers per block": config.layers_per_block,
        "attention": config.attention,
    }
    if config.spatial:
        needed["text width"] = config.context_dim
    check_sizes(unet, needed, "VidRD model: it was built")


def spatial_weights(model: VidrdModel) -> dict[str, Tensor]:
    """The fine-tuned weights of a model under their names in the U-Net; none when it holds none."""
    return {k: v for k, v in model.state_dict().items() if not is_temporal(k)}


@torch.no_grad()
def _exchange(unet: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put weights into the U-Net and return those that were there."""
    own = {k: v for k, v in unet.named_parameters() if k in weights}
    before = {k: v.detach().clone() for k, v in own.items()}
    for name, parameter in own.items():
        parameter.copy_(weights[name])
    return before
