"""A motion model in a diffusers U-Net, through forward hooks: the U-Net's modules, keys and weights are unchanged.

Shapes: b clips, f frames; the U-Net's batch is (b f, c, h, w), the frames of a clip one after another.
"""

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.norms import as_frames, as_volumes
from ..core.slots import Slot
from ..core.temporal import MotionModel, check_frames


class Handle:
    """An attached motion model. Set `frames` before each forward of the U-Net; `remove()` restores the U-Net.

    With `frames = 1` or `strength = 0` the modules do not run and the U-Net generates images as before; other strengths
    are a factor on the residuals. `calls` counts the calls of modules in the last forward. A forward that does not call
    all modules raises RuntimeError, because its result would be still images.
    """

    def __init__(self, unet: UNet2DConditionModel, motion: Any) -> None:
        self.motion = motion  # a MotionModel, or another model with modules_by_slot
        self.frames: int | None = None
        self.strength = 1.0
        self.calls = 0
        self._modules = motion.modules_by_slot()
        self._hooks = [
            unet.register_forward_pre_hook(self._before, with_kwargs=True),
            unet.register_forward_hook(self._after),
            *(hook for slot, module in self._modules.items() for hook in self._enter(unet, slot, module)),
        ]
        if getattr(motion.config, "image_norm", "") == "per_clip":
            for norm in image_norms(unet):
                self._hooks += [
                    norm.register_forward_pre_hook(self._before_norm),
                    norm.register_forward_hook(self._after_norm),
                ]

    def remove(self) -> None:
        """Remove the hooks, which restores the U-Net."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _enter(self, unet: UNet2DConditionModel, slot: Slot, module: Any) -> list[RemovableHandle]:
        return [address(unet, slot).register_forward_hook(self._at(module))]

    def _before(self, _unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        sample: Tensor = args[0] if args else kwargs["sample"]
        if self.frames is None:
            raise ValueError("motion model: set handle.frames to the frames of a clip before calling the U-Net")
        check_frames(sample.shape[0], self.frames, next(iter(self._modules.values())).max_frames)
        self.calls = 0

    def _at(self, module: Any) -> Any:
        def hook(_layer: nn.Module, _args: tuple, output: Any) -> Any:
            self.calls += 1
            frames, strength = self.frames, self.strength
            if frames is None or not self._runs():
                return None
            x = (
                output[0] if isinstance(output, tuple) else output
            )  # a Transformer2DModel inside a block returns a tuple
            x = module(x, frames) if strength == 1 else torch.add(x, module.update(x, frames), alpha=strength)
            return (x, *output[1:]) if isinstance(output, tuple) else x

        return hook

    def _runs(self) -> bool:
        return self.frames not in (None, 1) and self.strength != 0

    def _before_norm(self, _norm: nn.Module, args: tuple) -> Any:
        return (as_volumes(args[0], self.frames), *args[1:]) if self.frames and self._runs() else None

    def _after_norm(self, _norm: nn.Module, _args: tuple, x: Tensor) -> Any:
        return as_frames(x) if self._runs() else None

    def _after(self, _unet: nn.Module, _args: tuple, _output: Any) -> None:
        if self.calls < len(self._modules):
            raise RuntimeError(
                f"motion model: only {self.calls} of {len(self._modules)} motion modules were called in this forward; "
                "the U-Net must run all layers to which modules are attached"
            )


def attach(unet: UNet2DConditionModel, motion: MotionModel) -> Handle:
    """Attach the modules after the spatial layers of `unet`. ValueError when the sizes of the two differ."""
    check_base(unet, motion)
    return Handle(unet, motion)


def check_base(unet: UNet2DConditionModel, motion: MotionModel) -> None:
    """ValueError unless the motion model was built for a U-Net of these sizes."""
    config = motion.config
    base: Any = unet.config
    layers = base.layers_per_block
    actual = (tuple(base.block_out_channels), {layers} if isinstance(layers, int) else set(layers))
    expected = (config.block_channels, {config.layers_per_block})
    if actual != expected:
        raise ValueError(
            f"motion model: it was built for a U-Net with block channels {expected[0]} and {config.layers_per_block} "
            f"layers per block, but this one has {actual[0]} and {layers}; load the base model that the motion model "
            "was trained on"
        )
    if config.mid_block and unet.mid_block is None:
        raise ValueError(
            "motion model: it has a module for the middle block, but this U-Net has no middle block; load the base "
            "model that the motion model was trained on"
        )


def image_norms(unet: UNet2DConditionModel) -> list[nn.Module]:
    """The GroupNorms of the ResBlocks and of the output, which AnimateDiff v1 applies to whole clips."""
    blocks = [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]
    norms: list[Any] = [norm for block in blocks for norm in (block.norm1, block.norm2)]
    return norms if unet.conv_norm_out is None else [*norms, unet.conv_norm_out]


def address(unet: UNet2DConditionModel, slot: Slot) -> nn.Module:
    """The diffusers module of a slot. "resnet", "layer": the module after whose output the slot is, the spatial
    transformer of a layer if it has one, else its ResBlock. "attended": the transformer block that contains the slot.
    """
    block: Any = unet.mid_block if slot.part == "mid" else getattr(unet, f"{slot.part}_blocks")[slot.block]
    if slot.place == "resnet":
        return block.resnets[slot.layer]
    transformers = getattr(block, "attentions", None)
    transformer: Any = transformers[slot.layer] if transformers else None
    if slot.place == "attended":
        return transformer.transformer_blocks[0]
    return block.resnets[slot.layer] if transformer is None else transformer
