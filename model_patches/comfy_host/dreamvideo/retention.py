"""DreamVideo's retention branch as a ControlNet of ComfyUI's, by its own base class.

So it stands in a condition, chains with any ControlNet, has a strength and a part of the schedule, and ComfyUI loads,
offloads and casts its weights. It works under any motion model, since it only adds to the U-Net's skips.

A condition may ask for the null image instead (`with_null_image`): both run in one batch, for one object serves both.

Shapes: f frames of a clip; the U-Net's batch is n = chunks * clips * f, (n, c, h, w).
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.controlnet
import comfy.model_patcher
import torch
from torch import Tensor

from ... import checkpoint
from ...assembly import retention_branch
from ...core.pictures import FITS, fit, same_aspect
from ...core.slots import Slot
from ...dreamvideo.config import DreamVideoConfig, RetentionConfig
from ...dreamvideo.image import pixels, white
from ...dreamvideo.retention import RetentionBranch
from ...systems import DREAMVIDEO
from ..base import unet
from ..base.ops import operations
from ..motion import apply as motion
from ..motion.files import Typed, attention, patcher_of

__all__ = ["FITS", "LoadedBranch", "RetentionControl", "apply_retention", "hold_branch", "load_branch", "retention_of"]

log = logging.getLogger(__name__)
ControlBase: Any = comfy.controlnet.ControlBase
Conditioning = list[list[Any]]
NULL_IMAGE = "stillmotion_null_image"  # of a condition: 1, the null image; 0, the image


class HostedBranch(Typed, RetentionBranch):
    pass


@dataclass(frozen=True)
class LoadedBranch:
    """The branch of a DreamVideo file as ComfyUI holds it."""

    patcher: comfy.model_patcher.ModelPatcher
    config: RetentionConfig
    info: str


def load_branch(path: Path | str) -> LoadedBranch:
    """Read a DreamVideo file. CheckpointError says what is wrong with any other."""
    found = hold_branch(checkpoint.load(path, expect=DREAMVIDEO))
    log.info("%s is %s", Path(path).name, found.info)
    return found


def hold_branch(file: checkpoint.Checkpoint) -> LoadedBranch:
    """The branch of a DreamVideo file in ComfyUI's hands. The file's tensors become its weights, without a copy."""
    config = DreamVideoConfig.from_dict(file.config)
    with torch.device("meta"):
        module = retention_branch(config, kind=HostedBranch, ops=operations, attention=attention)
    weights = {k.removeprefix("branch."): v for k, v in file.weights.items() if k.startswith("branch.")}
    return LoadedBranch(patcher_of(module, weights), config.branch, checkpoint.describe(file))


class RetentionControl(ControlBase):
    """The branch with its image in one or more conditions. ControlNets applied before it are called as always."""

    def __init__(self, branch: LoadedBranch, image: Tensor | None, rule: str) -> None:
        super().__init__()
        self.branch, self.image, self.rule = branch, image, rule
        self.sampling: Any = None
        self.dtype, self.frames = torch.float32, 0
        self.features: dict[Any, Tensor] = {}

    @property
    def control_model_wrapped(self) -> comfy.model_patcher.ModelPatcher:
        """As ComfyUI's own ControlNets name their model."""
        return self.branch.patcher

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, transformer_options: Any) -> Any:
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if not self._active(t):
            return before
        x = self.sampling.calculate_input(t, x_noisy).to(self.dtype)
        context = cond.get("crossattn_controlnet", cond["c_crossattn"]).to(x)
        module: Any = self.branch.patcher.model
        z_s = self._conditions(x, cond.get(NULL_IMAGE))
        windowed = "context_window" in (transformer_options or {})
        chunk = len(x) // batched_number
        frames = chunk if windowed or not self.frames else self.frames
        found = module(x, self.sampling.timestep(t), context, z_s, frames)
        if self.branch.config.inject == "up_blocks":
            self._hand_on(found.down, transformer_options)
            return self.control_merge({"output": [], "middle": [found.mid]}, before, None)
        return self.control_merge({"output": found.down, "middle": [found.mid]}, before, None)

    def _active(self, t: Tensor) -> bool:
        if not self.strength:
            return False
        level, (start, end) = float(t[0]), self.timestep_range
        return end <= level <= start

    def _hand_on(self, down: list[Tensor], options: dict[str, Any]) -> None:
        """Residuals of the down blocks for the ends of the up blocks, by the handlers of `motion`."""
        blocks, last = len(down), self.branch.config.layers_per_block
        ends = {Slot("up", blocks - 1 - i, last): x * self.strength for i, x in enumerate(down)}
        options[motion.ADDED] = [*options.get(motion.ADDED, ()), ends]

    def _conditions(self, x: Tensor, null: Tensor | None) -> Tensor:
        """conv_s of the image of every row, (1 or n, c, h, w). null: (n,), 1 where the condition has the null image."""
        if self.image is None:
            return self._encoded(x, None)
        if null is None:
            return self._encoded(x, self.image)
        return torch.where(null.to(x).view(-1, 1, 1, 1) > 0, self._encoded(x, None), self._encoded(x, self.image))

    def _encoded(self, x: Tensor, image: Tensor | None) -> Tensor:
        """conv_s, once in a run for each size of the latents."""
        key = (image is None, tuple(x.shape[2:]), x.device, x.dtype)
        if key not in self.features:
            height, width = (side * self.branch.config.downscale for side in x.shape[2:])
            shown = white(height, width, x) if image is None else self._fitted(image, height, width)
            module: Any = self.branch.patcher.model
            self.features[key] = module.encode(shown.to(x))
        return self.features[key]

    def _fitted(self, image: Tensor, height: int, width: int) -> Tensor:
        high, wide = image.shape[-2:]
        if not same_aspect(high, wide, height, width):
            words = {"crop": "its middle is kept", "pad": "white edges are added", "stretch": "it is stretched"}
            log.warning(
                "image retention: the image is %d x %d, the video %d x %d; %s (fit: %s)",
                *(wide, high, width, height, words[self.rule], self.rule),
            )
        return fit(image, height, width, self.rule)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Before a run, by ComfyUI. ValueError when the branch is of another base."""
        super().pre_run(model, percent_to_timestep_function)
        patcher = model.current_patcher
        check_base(patcher, self.branch.config)
        self.sampling, self.dtype = model.model_sampling, model.get_dtype_inference()
        uses = [p.get_attachment(motion.KEY) for p in patcher.get_additional_models_with_key(motion.KEY)]
        self.frames = uses[0].frames if uses else 0  # of a clip; without a motion model, the whole batch
        if self.branch.config.inject == "up_blocks" and not motion.is_open(patcher):
            raise ValueError(
                "image retention: this branch adds to the ends of the up blocks, which this MODEL does not let it do; "
                "sample with Double-Condition Guider, or put a motion model on the MODEL with Apply Motion Model"
            )

    def cleanup(self) -> None:
        super().cleanup()
        self.sampling = None
        self.features = {}

    def copy(self) -> "RetentionControl":
        found = RetentionControl(self.branch, self.image, self.rule)
        self.copy_to(found)
        return found

    def get_models(self) -> list[Any]:
        return [*super().get_models(), self.branch.patcher]

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> "RetentionControl":
        held = self.branch.patcher
        module = copy.deepcopy(held.model)
        patcher = comfy.model_patcher.ModelPatcher(module, load_device=load_device, offload_device=held.offload_device)
        found = RetentionControl(LoadedBranch(patcher, self.branch.config, self.branch.info), self.image, self.rule)
        self.copy_to(found)
        if autoregister:
            self.multigpu_clones[load_device] = found
        return found


def apply_retention(
    conditions: tuple[Conditioning, ...],
    branch: LoadedBranch,
    image: Tensor | None,
    *,
    strength: float = 1.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    rule: str = "crop",
) -> tuple[Conditioning, ...]:
    """Copies of `conditions` with the branch behind the ControlNets that they have.

    image: (1, H, W, 1 to 4) from 0 to 1, None for the null image (white). start_percent, end_percent: part of the
    schedule, as for ControlNets. rule: what happens to another aspect, one of `FITS`. Conditions that share a
    ControlNet share the branch, so that they run in one batch. ValueError for an image that cannot be one.
    """
    if not 0 <= start_percent <= end_percent <= 1:
        raise ValueError(
            f"image retention: from {start_percent} to {end_percent} is no part of the schedule; start_percent must "
            "not be above end_percent, both between 0 and 1"
        )
    shown = None if image is None else pixels(image)
    shared: dict[int, RetentionControl] = {}

    def control(before: Any) -> RetentionControl:
        if id(before) not in shared:
            made = RetentionControl(branch, shown, rule)
            hint = torch.ones(1, 3, 1, 1) if shown is None else shown  # for those who look at ControlNets
            made.set_cond_hint(hint, strength, (start_percent, end_percent))
            made.set_previous_controlnet(before)
            shared[id(before)] = made
        return shared[id(before)]

    def changed(options: dict[str, Any]) -> dict[str, Any]:
        return options | {"control": control(options.get("control")), "control_apply_to_uncond": False}

    return tuple([[words, changed(options)] for words, options in condition] for condition in conditions)


def retention_of(condition: Conditioning) -> RetentionControl | None:
    """The branch of a condition, wherever it is in the chain of ControlNets; None when it has none."""
    for _words, options in condition:
        control = options.get("control")
        while control is not None:
            inner = getattr(control, "inner", control)  # ControlNet Frames stands around another
            if isinstance(inner, RetentionControl):
                return inner
            control = control.previous_controlnet
    return None


def with_null_image(condition: Conditioning, null: bool) -> Conditioning:
    """A copy whose branch sees the null image, or the image: rows of one batch may differ in it."""
    flag = comfy.conds.CONDRegular(torch.tensor([float(null)]))
    return [
        [words, options | {"model_conds": {**options.get("model_conds", {}), NULL_IMAGE: flag}}]
        for words, options in condition
    ]


def check_base(model: comfy.model_patcher.ModelPatcher, config: RetentionConfig) -> None:
    """The branch was copied from a U-Net of this size. ValueError names both sizes."""
    found = unet.channels_by_slot(unet.require_unet(model))
    down = {slot: channels for slot, channels in found.items() if slot.part == "down"}
    given: dict[str, Any] = {
        "block channels": tuple(channels for slot, channels in down.items() if slot.layer == 0),
        "layers in a block": 1 + max(slot.layer for slot in down),
        "text width": model.model.model_config.unet_config.get("context_dim"),
    }
    needed = {
        "block channels": config.block_channels,
        "layers in a block": config.layers_per_block,
        "text width": config.context_dim,
    }
    odd = next((name for name in needed if given[name] != needed[name]), None)
    if odd is not None:
        raise ValueError(
            f"image retention: the branch was made for a U-Net with {odd} {needed[odd]}, this MODEL is "
            f"{unet.family(model)} with {given[odd]}; load the base model that the branch was trained on"
        )
