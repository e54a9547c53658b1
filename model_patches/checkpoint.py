"""The only reader and writer of weight files.

Our own files are safetensors whose metadata has `format` = "stillmotion/1", `system` (what the weights are: "motion",
"pocket", ...), `config` (JSON) and whatever the writer adds (`base`, `step`, ...), all strings. Motion models of other
people are read through `layouts`. Pickles (.ckpt, .pt, .bin, .pth) are opened with torch's weights-only reader alone.
"""

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from . import layouts
from .core.config import MotionConfig
from .layouts import CheckpointError

FORMAT = "stillmotion/1"
MOTION = "motion"
PICKLES = (".ckpt", ".pt", ".bin", ".pth")
SUFFIXES = (".safetensors", *PICKLES)

__all__ = ["FORMAT", "MOTION", "SUFFIXES", "Checkpoint", "CheckpointError", "describe", "header_json", "load", "save"]


@dataclass(frozen=True)
class Checkpoint:
    """A file's content. Motion weights are in AnimateDiff's keys whatever layout the file had."""

    system: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    header: dict[str, str]
    layout: str


def load(path: Path | str, *, expect: str = MOTION) -> Checkpoint:
    """Read a weight file that is an `expect` ("motion", "pocket").

    CheckpointError, naming the file and what it is, when it is missing, truncated, of another kind, or holds NaN or
    infinite weights.
    """
    path = Path(path)
    header, tensors = _read(path)
    if header.get("format", "").startswith("stillmotion/"):
        found = _own(path, header, tensors, expect)
    elif expect == MOTION:
        found = _foreign_motion(path, header, tensors)
    else:
        raise CheckpointError(f"{path.name} has no StillMotion header: a StillMotion {expect!r} file is needed here")
    _check_finite(found.weights, path.name)
    return found


def save(
    path: Path | str,
    *,
    system: str,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write our format, whole or not at all: the final name never holds half a file, whatever interrupts the writing.

    `header` entries that are no strings are written as JSON (see `header_json`). CheckpointError when the disk is full
    or not writable; a file that had the name before is then untouched.
    """
    path = Path(path)
    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (header or {}).items()}
    metadata |= {"format": FORMAT, "system": system, "config": json.dumps(dict(config))}
    plain = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _write(partial, serialise(plain, metadata))
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} could not be written ({error}); free some space or choose another folder"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def header_json(header: Mapping[str, str], name: str) -> Any:
    """The value of a header entry that `save` wrote as JSON; None when the file has no such entry."""
    return json.loads(header[name]) if name in header else None


def describe(checkpoint: Checkpoint) -> str:
    """One line for the user on what a motion file was taken for."""
    config = MotionConfig.from_dict(checkpoint.config)
    modules = sum(1 for k in checkpoint.weights if k.endswith(".temporal_transformer.norm.weight"))
    betas = f"{config.beta_schedule} betas" if config.beta_schedule else "betas of the base model"
    dtypes = {str(v.dtype).removeprefix("torch.") for v in checkpoint.weights.values()}
    return (
        f"{checkpoint.layout}: {modules} modules for block channels {config.block_channels}, "
        f"{'with' if config.mid_block else 'no'} middle block, up to {config.max_frames} frames, {betas}, "
        f"{'/'.join(sorted(dtypes))}"
    )


def _read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Header and content as they are in the file."""
    if not path.is_file():
        where = "" if path.parent.is_dir() else f" (nor does the folder {path.parent})"
        raise CheckpointError(f"{path} does not exist{where}; put the file there or choose another")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLES:
        return {}, _read_pickle(path)
    raise CheckpointError(f"{path.name}: weights are read from {', '.join(SUFFIXES)}, not from {path.suffix or 'this'}")


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is truncated or no safetensors file ({error}); download or copy it again"
        ) from error


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} holds more than weights (pickled code is never run) or is no weight file; "
            "convert it to safetensors on a machine that trusts it"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path.name} is truncated or no weight file ({error}); download or copy it again"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, not named weights")
    return dict(content)


def _own(path: Path, header: dict[str, str], tensors: dict[str, Tensor], expect: str) -> Checkpoint:
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"{path.name} has the format {header['format']}, this StillMotion reads {FORMAT}: update it"
        )
    system = header.get("system", "")
    if system != expect:
        raise CheckpointError(f"{path.name} is a StillMotion {system!r} file: a {expect!r} file is needed here")
    try:
        config = json.loads(header["config"])
        motion = MotionConfig.from_dict(config) if system == MOTION else None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name} has a header that cannot be used ({error}); get the file again") from error
    if motion is not None:
        layouts.check_weights(motion, tensors, path.name)
    return Checkpoint(system, config, tensors, header, FORMAT)


def _foreign_motion(path: Path, header: dict[str, str], content: Mapping[str, Any]) -> Checkpoint:
    weights = layouts.unwrap(content)
    layout = layouts.identify(weights, path.name)
    if layout == layouts.DIFFUSERS:
        weights = layouts.from_diffusers(weights)
    config = layouts.motion_config(weights, path.name)
    name = f"AnimateDiff {layouts.animatediff_version(config)}"
    return Checkpoint(MOTION, config, weights, header, f"{name} (diffusers)" if layout == layouts.DIFFUSERS else name)


def _check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    bad = [k for k, v in weights.items() if v.is_floating_point() and not _finite(v)]
    if bad:
        raise CheckpointError(
            f"{source} has NaN or infinite values in {len(bad)} of its weights, first {bad[0]}; "
            "the file is damaged or its training diverged, use another"
        )


def _finite(weight: Tensor) -> bool:
    weight = weight.float() if weight.element_size() == 1 else weight  # torch has no such test for 8-bit floats
    return bool(torch.isfinite(weight).all())


def _write(path: Path, content: bytes) -> None:
    """On the disk before the file gets its name, and with the permissions of any new file (save_file: the owner's)."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
