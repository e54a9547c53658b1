"""Equal conditions of a guider: their predictions are equal, too, and are computed once."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, equal

IGNORED = {"uuid"}  # of a condition: new for every run


def same_conditions(a: Any, b: Any) -> bool:
    """Whether two conditions of a guider, as ComfyUI has processed them, give the same prediction.

    Tensors are compared by content; ControlNets, hooks and other objects must be the same object.
    """
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        names = a.keys() - IGNORED
        return names == b.keys() - IGNORED and all(same_conditions(a[name], b[name]) for name in names)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_conditions, a, b))
    if isinstance(a, str | int | float | bool) and isinstance(b, str | int | float | bool):
        return a == b
    # ComfyUI's classes for the inputs of a model
    inputs = [getattr(value, "cond", None) for value in (a, b)]
    return type(a) is type(b) and inputs[0] is not None and same_conditions(*inputs)


def first_equal(conditions: Sequence[Any]) -> list[int]:
    """For each of the conditions, the place of the first one that is equal to it, itself if there is none before.

    >>> first_equal([[{"strength": 1}], [{"strength": 2}], [{"strength": 1}]])
    [0, 1, 0]
    """
    return [next(k for k in range(len(conditions)) if same_conditions(conditions[k], c)) for c in conditions]
