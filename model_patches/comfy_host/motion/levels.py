"""The noise levels of a run, compared with those that the motion model was trained with.

Any node after Apply Motion Model can replace the noise levels that it set. ComfyUI's nodes build their table from the
image model's betas, so the motion model's betas are lost without an error. For a thinned table (LCM's) they are set
again, and the steps of the run are taken from the new table. Otherwise a warning names the node and both levels.
"""

import logging
from collections.abc import Iterator
from typing import Any

import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

from ..base.betas import Betas, is_thinned, same_levels, set_betas

log = logging.getLogger(__name__)

ModelPatcher = comfy.model_patcher.ModelPatcher
LONGEST = 5  # a partial schedule is recognised up to this number of times its own steps


def with_trained_levels(model: ModelPatcher, betas: Betas | None, steps: Tensor) -> tuple[ModelPatcher, Tensor]:
    """The MODEL and the noise levels (n + 1,) of a run. betas: those of the motion model; None: any will do.

    A warning, and both unchanged, if the MODEL has other betas in a full table.
    """
    sampling: Any = model.get_model_object("model_sampling")
    if betas is None or same_levels(sampling, betas):
        return model, steps
    if not is_thinned(sampling):
        _warn(sampling, betas)
        return model, steps
    trained = model.clone()
    set_betas(trained, betas)
    return trained, translated(steps, sampling, trained.get_model_object("model_sampling"))


def translated(steps: Tensor, old: Any, new: Any) -> Tensor:
    """The noise levels that the same scheduler gives with another table.

    Steps that are entries of the old table become the entries of the new one; others are compared with ComfyUI's
    schedulers. Steps that are neither were typed by hand or computed elsewhere, and stay what they are.
    """
    levels = steps.cpu()
    entries = torch.tensor([*old.sigmas.tolist(), 0.0]), torch.tensor([*new.sigmas.tolist(), 0.0])
    places = (levels[:, None] == entries[0]).int().argmax(1)
    if torch.equal(entries[0][places], levels):
        return entries[1][places].to(steps)
    for name, count in _schedules(len(levels) - 1):
        start = _start(levels, comfy.samplers.calculate_sigmas(old, name, count))
        if start is not None:
            result = comfy.samplers.calculate_sigmas(new, name, count)[start : start + len(levels)].clone()
            result[-1:] *= levels[-1:] > 0  # a run may end at 0 in the middle of a schedule
            return result.to(steps)
    return steps


def _schedules(steps: int) -> Iterator[tuple[str, int]]:
    """Schedulers and their numbers of steps, the likeliest first: a run may be a part of a longer schedule."""
    for count in range(max(1, steps), max(1, min(LONGEST * steps, 100)) + 2):
        yield from ((name, count) for name in comfy.samplers.SCHEDULER_NAMES)


def _start(levels: Tensor, schedule: Tensor) -> int | None:
    """Where `levels` are in a schedule, whose last one may be 0 in their place."""
    count = len(levels)
    for start in (schedule == levels[0]).nonzero().flatten().tolist():
        part = schedule[start : start + count]
        if len(part) == count and torch.equal(part[:-1], levels[:-1]) and levels[-1] in (part[-1], 0):
            return start
    return None


def _warn(sampling: Any, betas: Betas) -> None:
    kind = type(sampling)
    node, _, local = kind.__qualname__.partition(".<locals>.")  # ComfyUI's nodes define the class where they use it
    is_node = local and kind.__module__ != "comfy.model_base"
    culprit = f"the node {node.split('.')[0]}" if is_node else "a node, such as Model Sampling Betas,"
    trained, actual, level = _both_levels(betas, sampling)
    log.warning(
        "motion model: it was trained with %s betas, whose %s is %.1f, but this MODEL samples with one of %.1f, "
        "because %s after Apply Motion Model replaced the noise levels; move that node before Apply Motion Model, or "
        "set beta_schedule to 'model'",
        betas.schedule,
        level,
        trained,
        actual,
        culprit,
    )


def _both_levels(betas: Betas, sampling: Any) -> tuple[float, float, str]:
    """Two noise levels that differ, and their name: the largest ones, or those of the middle if these are equal."""
    actual = sampling.sigmas if hasattr(sampling, "sigmas") else torch.tensor([float(sampling.sigma_max)])
    trained = betas.levels(sampling)
    if trained is None:
        trained = betas.levels(comfy.model_sampling.ModelSamplingDiscrete())
        assert trained is not None
    largest = float(trained[-1]), float(actual[-1])
    if abs(largest[0] - largest[1]) > 0.01 * largest[0] or len(actual) != len(trained):
        return *largest, "largest noise level (sigma_max)"
    middle = len(trained) // 2
    return float(trained[middle]), float(actual[middle]), f"noise level (sigma) of timestep {middle}"
