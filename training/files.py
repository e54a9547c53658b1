"""Safetensors of the training, whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: dict[str, str] | None = None) -> None:
    """Write beside `path`, then rename: whatever interrupts, the final name never holds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial, header)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
