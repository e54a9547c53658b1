"""Modules whose sizes come from a file: they are built on the meta device, and never larger than the file."""

from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

SPARE = 1000  # parts that a model may have beyond those of the file, so that what is missing can be named
PER_WEIGHT = 4  # modules, parameters and buffers for a weight: a module with one weight is itself a part


class TooLarge(ValueError):
    """A config describes a larger model than the file has weights for."""


def check_counts(config: Mapping[str, Any], weights: int) -> None:
    """TooLarge for a number of layers or blocks that is above the number of weights, in a config or a table in it."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_counts(value, weights)
        elif isinstance(value, int) and ("layers" in name or "blocks" in name) and value > weights:
            raise TooLarge(f"{name} is {value}, but it has {weights} weights")


def build(make: Callable[[], nn.Module], weights: int, look: Callable[[], None] = lambda: None) -> nn.Module:
    """The module that `make` builds, without memory for its weights. TooLarge as soon as it has many more parts than
    `weights`, the number of weights in the file. look: is called while it is built and may stop it.

    torch tells every new part of a module to the functions that are registered here; they are removed at the end, and
    modules that other threads build meanwhile do not count.
    """
    thread, parts, most = get_ident(), 0, PER_WEIGHT * weights + SPARE

    def count(*_arguments: object) -> None:
        nonlocal parts
        if get_ident() != thread:
            return
        parts += 1
        if parts > most:
            raise TooLarge(f"its sizes describe a model of more than {most} parts, but it has {weights} weights")
        if not parts % 64:
            look()

    handles = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
        register_module_module_registration_hook(count),
    ]
    try:
        with torch.device("meta"):
            return make()
    finally:
        for handle in handles:
            handle.remove()
