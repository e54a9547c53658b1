"""The only reader and writer of weight files.

Our files are safetensors whose metadata has `format` = "stillmotion/1", `system` (the kind of the weights: "motion",
"harivo", "vidrd", "artv", "dreamvideo", "pocket", ...), `config` (JSON) and further entries of the writer (`base`,
`step`, ...), all as strings. Files of other projects are read through `layouts`. Pickles (.ckpt, .pt, .bin, .pth) are
only loaded with torch's weights-only reader.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from . import control_layouts, layouts, lora_layouts, systems
from .dreamvideo.config import DreamVideoConfig
from .files import packed, replacing
from .layouts import CheckpointError
from .lora_layouts import LoraLayer
from .systems import ARTV, DREAMVIDEO, HARIVO, MOTION, VIDRD, VIDRD_DECODER, WeightSystem

FORMAT = "stillmotion/1"
FOREIGN = (MOTION, VIDRD, VIDRD_DECODER)  # systems with files of other projects
PICKLES = (".ckpt", ".pt", ".bin", ".pth")
SUFFIXES = (".safetensors", *PICKLES)

__all__ = [
    "ARTV",
    "DREAMVIDEO",
    "FORMAT",
    "HARIVO",
    "MOTION",
    "SUFFIXES",
    "VIDRD",
    "VIDRD_DECODER",
    "Checkpoint",
    "CheckpointError",
    "describe",
    "header_json",
    "load",
    "load_controlnet",
    "load_motion_lora",
    "motion_of",
    "save",
]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file. Motion weights always have AnimateDiff's keys, VidRD's those of its authors."""

    system: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    header: dict[str, str]
    layout: str


def load(path: Path | str, *, expect: str | Sequence[str] = MOTION) -> Checkpoint:
    """Read a weight file that is an `expect` ("motion", "harivo", "vidrd", "pocket", ...), or one of several.

    CheckpointError, naming the file and what it is, when it is missing, truncated, of another kind, lacks weights of
    its config, or contains NaN or infinite weights.
    """
    path = Path(path)
    expect = (expect,) if isinstance(expect, str) else tuple(expect)
    header, tensors = _read(path)
    if header.get("format", "").startswith("stillmotion/"):
        checkpoint = _stillmotion_file(path, header, tensors, expect)
    elif set(expect) & set(FOREIGN):
        checkpoint = _foreign(path, header, tensors, expect)
    else:
        raise CheckpointError(
            f"{path.name} has no StillMotion header: a StillMotion {_either(expect)} file is needed here"
        )
    _check_finite(checkpoint.weights, path.name)
    return checkpoint


def save(
    path: Path | str,
    *,
    system: str,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write a file in our format atomically: after any interruption, the final name never has half a file.

    Values in `header` that are not strings are written as JSON (see `header_json`). CheckpointError when the disk is
    full or not writable; an existing file is then not changed.
    """
    path = Path(path)
    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (header or {}).items()}
    metadata |= {"format": FORMAT, "system": system, "config": json.dumps(dict(config))}
    try:
        with replacing(path) as partial:
            partial.write_bytes(packed(weights, metadata))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} could not be written ({error}); free some space or choose another folder"
        ) from error


def load_controlnet(path: Path | str) -> Checkpoint:
    """A ControlNet of Stable Diffusion as a DreamVideo file without temporal layers, to start training from.

    CheckpointError when the file is not such a ControlNet, or contains NaN.
    """
    path = Path(path)
    header, tensors = _read(path)
    branch, weights = control_layouts.from_controlnet(layouts.unwrap(tensors), path.name)
    _check_finite(weights, path.name)
    config = DreamVideoConfig(branch=branch).to_dict()
    return Checkpoint(DREAMVIDEO, config, {f"branch.{k}": v for k, v in weights.items()}, header, "ControlNet")


def load_motion_lora(path: Path | str) -> dict[str, LoraLayer]:
    """Name of a weight in a motion model -> its change by this motion LoRA, see `lora_layouts`.

    CheckpointError when the file is something else, is damaged, or contains NaN.
    """
    path = Path(path)
    _, content = _read(path)
    weights = layouts.unwrap(content)
    _check_finite(weights, path.name)
    return lora_layouts.motion_lora(weights, path.name)


def motion_of(checkpoint: Checkpoint) -> Checkpoint:
    """The temporal layers of a file as a separate checkpoint; a checkpoint without other parts is returned unchanged.

    CheckpointError when a DreamVideo file contains only the branch.
    """
    system = systems.get(checkpoint.system)
    if system is None or system.temporal is None:
        return checkpoint
    layers = system.temporal(checkpoint.config, checkpoint.weights)
    if layers is None:
        raise CheckpointError(
            f"this is {system.title} file without a motion model: load it with Load Retention Branch, and the motion "
            "model that it was trained with, or another for the same base, here"
        )
    layout = f"{checkpoint.layout} {system.label}:"
    return Checkpoint(system.layers, *layers, checkpoint.header, layout)


def header_json(header: Mapping[str, str], name: str) -> Any:
    """The value of a header entry that `save` wrote as JSON; None when the file has no such entry."""
    return json.loads(header[name]) if name in header else None


def describe(checkpoint: Checkpoint) -> str:
    """One line for the user that describes a weight file."""
    dtypes = {str(weight.dtype).removeprefix("torch.") for weight in checkpoint.weights.values()}
    system = systems.get(checkpoint.system)
    summary = system.summary(checkpoint.config, checkpoint.weights) if system else f" {checkpoint.system}"
    return f"{checkpoint.layout}{summary}, {'/'.join(sorted(dtypes))}"


def _read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Header and content of the file, unchanged."""
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


def _stillmotion_file(
    path: Path, header: dict[str, str], tensors: dict[str, Tensor], expect: tuple[str, ...]
) -> Checkpoint:
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"{path.name} has the format {header['format']}, this StillMotion reads {FORMAT}: update it"
        )
    name = header.get("system", "")
    if name not in expect:
        raise CheckpointError(f"{path.name} is a StillMotion {name!r} file: a {_either(expect)} file is needed here")
    system = systems.get(name)
    try:
        config = json.loads(header["config"])
        with torch.device("meta"):  # without memory for the weights
            model = system.model(config) if system else None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name} has a header that cannot be used ({error}); get the file again") from error
    if system is not None and model is not None:
        if system.parts:
            _check_parts(system, model, tensors, path.name)
        layouts.check_weights(model, tensors, path.name)
    return Checkpoint(name, config, tensors, header, FORMAT)


def _either(systems: tuple[str, ...]) -> str:
    return " or ".join(repr(system) for system in systems)


def _check_parts(system: WeightSystem, model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """CheckpointError, naming the component, when the file has no weight of a component of its config."""
    present = {key.split(".")[0] for key in weights}
    missing = [part for part, _ in model.named_children() if part not in present]
    if missing:
        raise CheckpointError(
            f"{source} is {system.title} file whose config has {', '.join(missing)}, but the file has no such weights; "
            "it was cut down or comes from a run that failed: get the file again or export it again"
        )


def _foreign(path: Path, header: dict[str, str], content: Mapping[str, Any], expect: tuple[str, ...]) -> Checkpoint:
    weights = layouts.unwrap(content)
    layout = layouts.identify(weights, path.name)
    system, read = _FOREIGN_LAYOUTS.get(layout, (MOTION, _foreign_motion))
    if system not in expect:
        raise CheckpointError(f"{path.name} is {_FOREIGN_TITLES[system]}: a {_either(expect)} file is needed here")
    return read(path, header, weights, layout)


def _foreign_vidrd(path: Path, header: dict[str, str], weights: dict[str, Tensor], _layout: str) -> Checkpoint:
    weights = layouts.from_vidrd(weights)
    return Checkpoint(VIDRD, layouts.vidrd_config(weights, path.name), weights, header, "as published:")


def _foreign_decoder(path: Path, header: dict[str, str], weights: dict[str, Tensor], _layout: str) -> Checkpoint:
    weights = layouts.from_vidrd_decoder(weights)
    config = layouts.vidrd_decoder_config(weights, path.name)
    return Checkpoint(VIDRD_DECODER, config, weights, header, "as published:")


def _foreign_motion(path: Path, header: dict[str, str], weights: dict[str, Tensor], layout: str) -> Checkpoint:
    rename = _MOTION_NAMES.get(layout)
    weights = rename(weights) if rename else weights
    with_tables = layouts.with_position_tables(weights)
    config = layouts.motion_config(with_tables, path.name, layout)
    if layout == layouts.HOTSHOT:
        name = "Hotshot-XL"
    else:
        lcm = len(with_tables) != len(weights)
        name = "AnimateLCM" if lcm else f"AnimateDiff {layouts.animatediff_version(config)}"
        name += " (diffusers)" if layout == layouts.DIFFUSERS else ""
    return Checkpoint(MOTION, config, with_tables, header, name)


_MOTION_NAMES = {layouts.DIFFUSERS: layouts.from_diffusers, layouts.HOTSHOT: layouts.from_hotshot}
_FOREIGN_LAYOUTS = {
    layouts.VIDRD: (VIDRD, _foreign_vidrd),
    layouts.VIDRD_DECODER: (VIDRD_DECODER, _foreign_decoder),
}
_FOREIGN_TITLES = {
    MOTION: "a motion model",
    VIDRD: "a VidRD (Reuse and Diffuse) model, for Load Motion Model",
    VIDRD_DECODER: "an autoencoder with VidRD's temporal decoder, for Temporal Decoder",
}


def _check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    bad = [k for k, v in weights.items() if v.is_floating_point() and not _finite(v)]
    if bad:
        raise CheckpointError(
            f"{source} has NaN or infinite values in {len(bad)} of its weights, first {bad[0]}; "
            "the file is damaged or its training diverged, use another"
        )


def _finite(weight: Tensor) -> bool:
    weight = weight.float() if weight.element_size() == 1 else weight  # torch cannot test 8-bit floats
    return bool(torch.isfinite(weight).all())
