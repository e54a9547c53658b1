"""A VidRD model in a diffusers U-Net: temporal layers through torch hooks, and the weights of the fine-tuned blocks.

The U-Net's modules and keys are unchanged; `remove()` removes the hooks and restores the image model's weights.

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
    """An attached VidRD model. Set `frames` before each forward; `strength` is a factor on the residuals.

    With `frames = 1` or `strength = 0` the temporal layers do not run. If the model has fine-tuned blocks, the U-Net
    uses their weights until `remove()`.
    """

    def __init__(self, unet: UNet2DConditionModel, model: VidrdModel) -> None:
        self._residual: dict[Slot, Tensor] = {}
        super().__init__(unet, model)
        self._unet = unet
        self._image_weights = _exchange(unet, spatial_weights(model))

    def remove(self) -> None:
        """Remove the hooks and restore the image model's weights."""
        super().remove()
        _exchange(self._unet, self._image_weights)
        self._image_weights = {}

    def predict(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """eps of the whole model: x_t (b, f, c, h, w), t (b,), context (b, L, d) -> same as x_t. Sets `frames`."""
        f = self.frames = x_t.shape[1]
        times, contexts = t.repeat_interleave(f), context.repeat_interleave(f, 0)
        return self._unet(x_t.flatten(0, 1), times, contexts).sample.unflatten(0, (-1, f))

    def _enter(self, unet: UNet2DConditionModel, slot: Slot, module: Any) -> list[RemovableHandle]:
        if slot.place != "attended":
            return super()._enter(unet, slot, module)
        block: Any = motion.address(unet, slot)

        def store_input(_norm: nn.Module, args: tuple) -> None:
            self._residual[slot] = args[0]  # the input to which cross-attention is added

        def change(_attention: nn.Module, _args: tuple, output: Tensor) -> Tensor | None:
            self.calls += 1
            x, frames = self._residual.pop(slot), self.frames
            if frames is None or frames == 1 or self.strength == 0:
                return None
            return torch.add(output, module.update(x + output, frames), alpha=self.strength)

        return [block.norm2.register_forward_pre_hook(store_input), block.attn2.register_forward_hook(change)]


def attach(unet: UNet2DConditionModel, model: VidrdModel) -> Handle:
    """Attach the temporal layers to the U-Net, and copy the fine-tuned blocks into it if the model has any.

    ValueError when the sizes of the two differ.
    """
    check_base(unet, model)
    return Handle(unet, model)


def check_base(unet: UNet2DConditionModel, model: VidrdModel) -> None:
    """ValueError unless the model was built for a U-Net with these blocks, transformers and text."""
    config = model.config
    expected: dict[str, Any] = {
        "block channels": config.block_channels,
        "layers per block": config.layers_per_block,
        "attention": config.attention,
    }
    if config.spatial:
        expected["text width"] = config.context_dim
    check_sizes(unet, expected, "VidRD model: it was built")


def spatial_weights(model: VidrdModel) -> dict[str, Tensor]:
    """The fine-tuned weights of a model under their names in the U-Net; empty if it has none."""
    return {k: v for k, v in model.state_dict().items() if not is_temporal(k)}


@torch.no_grad()
def _exchange(unet: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy weights into the U-Net and return the previous ones."""
    parameters = {k: v for k, v in unet.named_parameters() if k in weights}
    previous = {k: v.detach().clone() for k, v in parameters.items()}
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
    return previous
