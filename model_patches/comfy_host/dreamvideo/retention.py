"""DreamVideo's retention branch as a ControlNet, see `motion.branch`.

A condition can use the null image instead (`with_null_image`). Because it is the same object, both run in one batch.

Shapes: f frames of a clip; the U-Net's batch is n = chunks * clips * f, (n, c, h, w).
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.model_patcher
import torch
from comfy.model_management import throw_exception_if_processing_interrupted as interrupted
from torch import Tensor

from ... import checkpoint
from ...assembly import retention_branch
from ...core.pictures import FITS, fit, same_aspect
from ...core.slots import Slot
from ...dreamvideo.config import DreamVideoConfig, RetentionConfig
from ...dreamvideo.image import pixels, white
from ...dreamvideo.retention import RetentionBranch
from ...systems import DREAMVIDEO
from ..base.ops import operations
from ..motion import apply as motion
from ..motion.branch import BranchControl, Conditioning, attach
from ..motion.files import Typed, attention, patcher_of

__all__ = ["FITS", "LoadedBranch", "RetentionControl", "apply_retention", "hold_branch", "load_branch", "retention_of"]

log = logging.getLogger(__name__)
NULL_IMAGE = "stillmotion_null_image"  # in a condition: 1 for the null image, 0 for the image


class HostedBranch(Typed, RetentionBranch):
    pass


@dataclass(frozen=True)
class LoadedBranch:
    """The branch of a loaded DreamVideo file."""

    patcher: comfy.model_patcher.ModelPatcher
    config: RetentionConfig
    info: str


def load_branch(path: Path | str) -> LoadedBranch:
    """Load a DreamVideo file. CheckpointError says what is wrong with any other file."""
    branch = hold_branch(checkpoint.load(path, expect=DREAMVIDEO, look=interrupted))
    log.info("%s is %s", Path(path).name, branch.info)
    return branch


def hold_branch(file: checkpoint.Checkpoint) -> LoadedBranch:
    """Prepare the branch of a DreamVideo file for ComfyUI. The file's tensors become its weights without a copy."""
    config = DreamVideoConfig.from_dict(file.config)
    with torch.device("meta"):
        module = retention_branch(config, kind=HostedBranch, ops=operations, attention=attention)
    weights = {k.removeprefix("branch."): v for k, v in file.weights.items() if k.startswith("branch.")}
    return LoadedBranch(patcher_of(module, weights), config.branch, checkpoint.describe(file))


class RetentionControl(BranchControl):
    """The branch and its image in one or more conditions."""

    subject = "image retention"

    def __init__(self, branch: LoadedBranch, image: Tensor | None, rule: str) -> None:
        super().__init__(branch.patcher, branch.config)
        self.branch, self.image, self.rule = branch, image, rule
        self.features: dict[Any, Tensor] = {}

    def output(self, x: Tensor, t: Tensor, context: Tensor, frames: int, cond: Any, options: Any) -> dict[str, list]:
        module: Any = self.patcher.model
        residuals = module(x, t, context, self._conditions(x, cond.get(NULL_IMAGE)), frames)
        if self.branch.config.inject == "up_blocks":
            self._store_for_up_blocks(residuals.down, options)
            return {"output": [], "middle": [residuals.mid]}
        return {"output": residuals.down, "middle": [residuals.mid]}

    def _store_for_up_blocks(self, down: list[Tensor], options: dict[str, Any]) -> None:
        """Store the residuals for the ends of the up blocks, where the handlers of `motion` add them."""
        blocks, last = len(down), self.branch.config.layers_per_block
        ends = {Slot("up", blocks - 1 - i, last): x * self.strength for i, x in enumerate(down)}
        options[motion.ADDED] = [*options.get(motion.ADDED, ()), ends]

    def _conditions(self, x: Tensor, null: Tensor | None) -> Tensor:
        """conv_s of the image of every row, (1 or n, c, h, w). null: (n,), 1 for conditions with the null image."""
        if self.image is None:
            return self._encode(x, None)
        if null is None:
            return self._encode(x, self.image)
        return torch.where(null.to(x).view(-1, 1, 1, 1) > 0, self._encode(x, None), self._encode(x, self.image))

    def _encode(self, x: Tensor, image: Tensor | None) -> Tensor:
        """conv_s, computed once per run for each size of the latents."""
        key = (image is None, tuple(x.shape[2:]), x.device, x.dtype)
        if key not in self.features:
            height, width = (side * self.branch.config.downscale for side in x.shape[2:])
            picture = white(height, width, x) if image is None else self._fit(image, height, width)
            module: Any = self.patcher.model
            self.features[key] = module.encode(picture.to(x))
        return self.features[key]

    def _fit(self, image: Tensor, height: int, width: int) -> Tensor:
        high, wide = image.shape[-2:]
        if not same_aspect(high, wide, height, width):
            effects = {"crop": "it is cropped", "pad": "white edges are added", "stretch": "it is stretched"}
            log.warning(
                "image retention: the image has %d x %d pixels, the video %d x %d; %s (fit: %s)",
                *(wide, high, width, height, effects[self.rule], self.rule),
            )
        return fit(image, height, width, self.rule)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Called by ComfyUI before a run. ValueError when the branch does not fit this MODEL."""
        super().pre_run(model, percent_to_timestep_function)
        if self.branch.config.inject == "up_blocks" and not motion.has_handlers(model.current_patcher):
            raise ValueError(
                "image retention: this branch adds to the outputs of the up blocks, which this MODEL does not support; "
                "sample with Double-Condition Guider, or add a motion model with Apply Motion Model"
            )

    def cleanup(self) -> None:
        super().cleanup()
        self.features = {}

    def copy(self) -> "RetentionControl":
        clone = RetentionControl(self.branch, self.image, self.rule)
        self.copy_to(clone)
        return clone


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
    """Copies of `conditions` with the branch after the ControlNets that they already have.

    image: (1, H, W, 1 to 4) from 0 to 1, None for the null image (white). start_percent, end_percent: part of the
    schedule, as for ControlNets. rule: how to fit another aspect ratio, one of `FITS`. Conditions that share a
    ControlNet share the branch, so that they run in one batch. ValueError for an invalid image.
    """
    picture = None if image is None else pixels(image)
    hint = torch.ones(1, 3, 1, 1) if picture is None else picture  # for nodes that inspect ControlNets
    control = RetentionControl(branch, picture, rule)
    return attach(conditions, control, hint, strength, (start_percent, end_percent))


def retention_of(condition: Conditioning) -> RetentionControl | None:
    """The branch of a condition, anywhere in its chain of ControlNets, or None."""
    for _tokens, options in condition:
        control = options.get("control")
        while control is not None:
            inner = getattr(control, "inner", control)  # ControlNet Frames wraps another ControlNet
            if isinstance(inner, RetentionControl):
                return inner
            control = control.previous_controlnet
    return None


def with_null_image(condition: Conditioning, null: bool) -> Conditioning:
    """A copy whose branch uses the null image (or the image); rows of one batch may differ in this."""
    flag = comfy.conds.CONDRegular(torch.tensor([float(null)]))
    return [
        [tokens, options | {"model_conds": {**options.get("model_conds", {}), NULL_IMAGE: flag}}]
        for tokens, options in condition
    ]
