"""Motion LoRAs on a loaded motion model: weight patches of its ModelPatcher, for a part of the sampling each.

ComfyUI merges the patches into the weights when it loads the model, so a LoRA costs no time in a step. Weights can have
one merged state at a time. If LoRAs are active in different parts of the sampling, the motion model is therefore loaded
once more for every further combination of LoRAs.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import comfy.lora
import torch
from comfy.model_management import throw_exception_if_processing_interrupted as interrupted

from ... import checkpoint
from ...checkpoint import CheckpointError
from ...lora_layouts import LoraLayer
from .files import LoadedMotion, temporal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MotionLora:
    """A motion LoRA in use. patches: name of a weight in the module -> ComfyUI's patch."""

    name: str
    patches: Mapping[str, Any]
    strength: float
    start_percent: float
    end_percent: float


def with_lora(
    motion: LoadedMotion,
    path: Path | str,
    *,
    strength: float = 1.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
) -> LoadedMotion:
    """The motion model with a motion LoRA, which is active from start_percent to end_percent of the sampling.

    CheckpointError when the file is no motion LoRA, or was made for another motion model.
    """
    path = Path(path)
    patches = _patches(motion, checkpoint.load_motion_lora(path, interrupted), path.name)
    lora = MotionLora(path.name, patches, strength, start_percent, end_percent)
    info = f"{motion.info}; LoRA {path.name} at {strength:g}"
    return replace(motion, loras=(*motion.loras, lora), info=info)


def _patches(motion: LoadedMotion, layers: Mapping[str, LoraLayer], source: str) -> dict[str, Any]:
    """ComfyUI's patches for the layers that the motion model has. A LoRA of AnimateDiff v2 also has a middle block."""
    prefix = "temporal." if temporal(motion.patcher.model) is not motion.patcher.model else ""
    sizes = {name: tuple(weight.shape) for name, weight in temporal(motion.patcher.model).state_dict().items()}
    common = {name: layer for name, layer in layers.items() if name in sizes}
    surplus = sorted(set(layers) - set(common))
    if not common or any(not name.startswith("mid_block.") for name in surplus):
        raise CheckpointError(
            f"{source} changes {surplus[0]}, which this motion model does not have ({motion.info}); use the LoRA with "
            "the kind of motion model that it was trained on"
        )
    for name, layer in common.items():
        change = (layer.up.shape[0], layer.down.shape[1])
        if change != sizes[name]:
            raise CheckpointError(
                f"{source} changes a matrix of {change[0]} x {change[1]} in {name}, but that of this motion model is "
                f"{' x '.join(map(str, sizes[name]))} ({motion.info}); use the LoRA with the kind of motion model that "
                "it was trained on"
            )
    if surplus:
        log.warning(
            "%s also changes the middle block, which this motion model does not have; that part is unused", source
        )
    weights, names = {}, {}
    for name, layer in common.items():
        weights |= _kohya(name, layer)
        names[name] = prefix + name
    return comfy.lora.load_lora(weights, names)


def _kohya(name: str, layer: LoraLayer) -> dict[str, Any]:
    """A layer under the names that ComfyUI reads."""
    weights = {f"{name}.lora_up.weight": layer.up, f"{name}.lora_down.weight": layer.down}
    return weights if layer.alpha is None else weights | {f"{name}.alpha": torch.tensor(layer.alpha)}


@dataclass(frozen=True)
class Part:
    """A part of the sampling, from start to end as a fraction, with the ModelPatcher whose LoRAs are active there.

    last: whether the noise level at its end belongs to it; otherwise it belongs to the next part.
    """

    patcher: Any
    start: float
    end: float
    last: bool


def parts(motion: LoadedMotion, start: float, end: float, users: Sequence[Any] = ()) -> Iterator[Part]:
    """The sampling from start to end, divided where LoRAs start or end. Without LoRAs, or with LoRAs that are always
    active, this is one part.

    users: the ModelPatchers of motion models that sample together with this one.
    """
    bounds = sorted({start, end, *(b for lora in motion.loras for b in _bounds(lora) if start < b < end)})
    patchers: dict[tuple[int, ...], Any] = {}
    intervals: list[tuple[tuple[int, ...], float, float]] = []
    for low, high in pairwise(bounds) if len(bounds) > 1 else [(start, end)]:
        active = tuple(i for i, lora in enumerate(motion.loras) if _covers(lora, low, high))
        if intervals and intervals[-1][0] == active:
            intervals[-1] = (active, intervals[-1][1], high)
        else:
            intervals.append((active, low, high))
    for active, low, high in intervals:
        if active not in patchers:
            patchers[active] = _patched(motion, active, [*users, *patchers.values()])
        yield Part(patchers[active].clone(), low, high, high == end)


def _bounds(lora: MotionLora) -> tuple[float, float]:
    return lora.start_percent, lora.end_percent


def _covers(lora: MotionLora, low: float, high: float) -> bool:
    return bool(lora.strength) and lora.start_percent <= low and high <= lora.end_percent


def _patched(motion: LoadedMotion, active: tuple[int, ...], users: Sequence[Any]) -> Any:
    """A ModelPatcher with these LoRAs: on the weights of the motion model, or on weights of its own, if others that are
    sampled together with it need the weights in another state."""
    sharing = [user for user in users if user.model is motion.patcher.model]
    if not sharing or not (active or any(user.patches for user in sharing)):
        patcher = motion.patcher.clone()
    else:
        reload: Any = motion.patcher.cached_patcher_init
        patcher = reload[0](*reload[1])
        log.info("motion LoRA: the motion model is loaded once more, because it is used with and without LoRAs")
    for i in active:
        patcher.add_patches(dict(motion.loras[i].patches), motion.loras[i].strength)
    return patcher
