"""Networks of ours that act like ControlNets, derived from ComfyUI's base class.

They are therefore attached to a condition, can be chained with any ControlNet, have a strength and a part of the
schedule, and ComfyUI loads, offloads and casts their weights. They work with any motion model, since they only add to
the U-Net's features.

Shapes: f frames of a clip; the U-Net's batch is n = chunks * clips * f, (n, c, h, w).
"""

import copy
from typing import Any

import comfy.controlnet
import comfy.model_patcher
import torch
from torch import Tensor

from ...core.control import Sizes
from ..base import unet
from . import apply as motion

ControlBase: Any = comfy.controlnet.ControlBase
Conditioning = list[list[Any]]


class BranchControl(ControlBase):
    """A network in one or more conditions. ControlNets applied before it still run."""

    subject = "control"  # for messages

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher, sizes: Sizes) -> None:
        super().__init__()
        self.patcher, self.sizes = patcher, sizes
        self.sampling: Any = None
        self.dtype, self.frames = torch.float32, 0

    @property
    def control_model_wrapped(self) -> comfy.model_patcher.ModelPatcher:
        """The model, under the name that ComfyUI's ControlNets use."""
        return self.patcher

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, transformer_options: Any) -> Any:
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if not self._active(t):
            return previous
        x = self.sampling.calculate_input(t, x_noisy).to(self.dtype)
        context = cond.get("crossattn_controlnet", cond["c_crossattn"]).to(x)
        rows = len(x) // batched_number
        options = {} if transformer_options is None else transformer_options
        frames = motion.frames_of_call(self.frames, rows, options) if self.frames else rows
        output = self.output(x, self.sampling.timestep(t), context, frames, cond, options)
        return self.control_merge(output, previous, None)

    def output(self, x: Tensor, t: Tensor, context: Tensor, frames: int, cond: Any, options: Any) -> dict[str, list]:
        """The residuals for ComfyUI, by "output" and "middle". frames: of a clip; cond, options: those of ComfyUI."""
        raise NotImplementedError

    def _active(self, t: Tensor) -> bool:
        if not self.strength:
            return False
        level, (start, end) = float(t[0]), self.timestep_range
        return end <= level <= start

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Called by ComfyUI before a run. ValueError when the network is for another base model."""
        super().pre_run(model, percent_to_timestep_function)
        patcher = model.current_patcher
        self.check_base(patcher)
        self.sampling, self.dtype = model.model_sampling, model.get_dtype_inference()
        uses = [p.get_attachment(motion.KEY) for p in patcher.get_additional_models_with_key(motion.KEY)]
        self.frames = uses[0].frames if uses else 0  # of one clip; without a motion model, the whole batch

    def check_base(self, model: comfy.model_patcher.ModelPatcher) -> None:
        """ValueError, naming both sizes, unless the network was built for a U-Net of this size."""
        channels_by_slot = unet.channels_by_slot(unet.require_unet(model))
        down = {slot: channels for slot, channels in channels_by_slot.items() if slot.part == "down"}
        actual: dict[str, Any] = {
            "block channels": tuple(channels for slot, channels in down.items() if slot.layer == 0),
            "layers in a block": 1 + max(slot.layer for slot in down),
            "text width": model.model.model_config.unet_config.get("context_dim"),
        }
        expected = {
            "block channels": self.sizes.block_channels,
            "layers in a block": self.sizes.layers_per_block,
            "text width": self.sizes.context_dim,
        }
        mismatch = next((name for name in expected if actual[name] != expected[name]), None)
        if mismatch is not None:
            raise ValueError(
                f"{self.subject}: it was built for a U-Net with {mismatch} {expected[mismatch]}, but this MODEL is "
                f"{unet.family(model)} with {actual[mismatch]}; load the base model that it was trained on"
            )

    def cleanup(self) -> None:
        super().cleanup()
        self.sampling = None

    def get_models(self) -> list[Any]:
        return [*super().get_models(), self.patcher]

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> Any:
        clone = self.copy()
        module = copy.deepcopy(self.patcher.model)
        offload_device = self.patcher.offload_device
        clone.patcher = comfy.model_patcher.ModelPatcher(module, load_device=load_device, offload_device=offload_device)
        if autoregister:
            self.multigpu_clones[load_device] = clone
        return clone


def attach(
    conditions: tuple[Conditioning, ...],
    control: BranchControl,
    hint: Tensor,
    strength: float,
    part: tuple[float, float],
) -> tuple[Conditioning, ...]:
    """Copies of `conditions` with `control` after the ControlNets that they already have.

    hint: what nodes that inspect or cut ControlNets see. part: start and end in the schedule, as for ControlNets.
    Conditions that share a ControlNet share the new one, so that they run in one batch. ValueError for another part.
    """
    start, end = part
    if not 0 <= start <= end <= 1:
        raise ValueError(
            f"{control.subject}: start_percent is {start} and end_percent is {end}; start_percent must not be above "
            "end_percent, and both must be between 0 and 1"
        )
    control.set_cond_hint(hint, strength, part)
    copies: dict[int, Any] = {}

    def attached(options: dict[str, Any]) -> dict[str, Any]:
        previous = options.get("control")
        if id(previous) not in copies:
            copies[id(previous)] = control.copy().set_previous_controlnet(previous)
        return options | {"control": copies[id(previous)], "control_apply_to_uncond": False}

    return tuple([[tokens, attached(options)] for tokens, options in condition] for condition in conditions)
