"""The only reader and writer of weight files.

Our files are safetensors whose metadata has `format` = "stillmotion/1", `system` (the kind of the weights: "motion",
"harivo", "vidrd", "artv", "dreamvideo", "pocket", ...), `config` (JSON) and further entries of the writer (`base`,
`step`, ...), all as strings. Files of other projects are read through `layouts`. Pickles (.ckpt, .pt, .bin, .pth) are
only loaded with torch's weights-only reader.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from . import control_layouts, layouts, lora_layouts, systems
from .building import build, check_counts
from .dreamvideo.config import DreamVideoConfig
from .files import digest_of, packed, parse_json, replacing
from .layouts import CheckpointError
from .lora_layouts import LoraLayer
from .pocket import TOKEN_IDS, PocketConfig, check_sizes
from .reading import SUFFIXES, Look, check_values, read_file
from .sparsectrl.config import LATENT, SparseConfig
from .systems import ARTV, DREAMVIDEO, HARIVO, MOTION, VIDRD, VIDRD_DECODER, WeightSystem

FORMAT = "stillmotion/1"
DIGEST = "digest"  # entry of the header
FOREIGN = (MOTION, VIDRD, VIDRD_DECODER)  # systems with files of other projects
WHOLE_NUMBERS = frozenset({TOKEN_IDS})  # tables that are no floating-point numbers

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
    "load_sized",
    "load_sparsectrl",
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


def load(path: Path | str, *, expect: str | Sequence[str] = MOTION, look: Look = lambda: None) -> Checkpoint:
    """Read a weight file that is an `expect` ("motion", "harivo", "vidrd", "pocket", ...), or one of several.

    look: is called at least twice a second and may stop the reading. CheckpointError, naming the file and what it is,
    when it is missing, truncated, of another kind, lacks weights of its config, has other weights than its digest says,
    or contains weights that are not finite floating-point numbers.
    """
    path = Path(path)
    expect = (expect,) if isinstance(expect, str) else tuple(expect)
    header, tensors = read_file(path, look)
    if header.get("format", "").startswith("stillmotion/"):
        checkpoint = _stillmotion_file(path, header, tensors, expect, look)
    elif set(expect) & set(FOREIGN):
        checkpoint = _foreign(path, header, tensors, expect)
    else:
        raise CheckpointError(
            f"{path.name} has no StillMotion header: a StillMotion {_either(expect)} file is needed here"
        )
    check_values(checkpoint.weights, path.name, WHOLE_NUMBERS, look)
    return checkpoint


def load_sized(path: Path | str, system: str, networks: Sequence[str], look: Look = lambda: None) -> Checkpoint:
    """Read a pocket file, whose networks a host builds from its sizes. networks: prefixes of those that it has.

    CheckpointError also when the weights do not have the sizes that the header states.
    """
    file = load(path, expect=system, look=look)
    try:
        shapes = {name: tuple(weight.shape) for name, weight in file.weights.items()}
        check_sizes(PocketConfig.from_dict(file.config), shapes, networks)
    except ValueError as error:
        raise CheckpointError(f"{Path(path).name} has a header that cannot be used ({error}); get it again") from error
    return file


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
    metadata[DIGEST] = _digest(metadata, weights)
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
    header, tensors = read_file(path)
    branch, weights = control_layouts.from_controlnet(layouts.unwrap(tensors), path.name)
    check_values(weights, path.name, WHOLE_NUMBERS)
    config = DreamVideoConfig(branch=branch).to_dict()
    return Checkpoint(DREAMVIDEO, config, {f"branch.{k}": v for k, v in weights.items()}, header, "ControlNet")


def load_sparsectrl(path: Path | str, look: Look = lambda: None) -> tuple[SparseConfig, dict[str, Tensor], str]:
    """The config and the weights of a SparseCtrl network, and one line for the user that describes it.

    look: see `load`. CheckpointError when the file is something else, is damaged, or contains NaN.
    """
    path = Path(path)
    _, content = read_file(path, look)
    config, weights = control_layouts.from_sparsectrl(layouts.unwrap(content), path.name)
    check_values(weights, path.name, WHOLE_NUMBERS, look)
    kind = "RGB images" if config.hint == LATENT else "scribbles or edges"
    return config, weights, f"SparseCtrl for {kind}, up to {config.max_frames} frames, {_dtypes(weights)}"


def load_motion_lora(path: Path | str, look: Look = lambda: None) -> dict[str, LoraLayer]:
    """Name of a weight in a motion model -> its change by this motion LoRA, see `lora_layouts`.

    look: see `load`. CheckpointError when the file is something else, is damaged, or contains NaN.
    """
    path = Path(path)
    _, content = read_file(path, look)
    weights = layouts.unwrap(content)
    check_values(weights, path.name, frozenset(key for key in weights if key.endswith(".alpha")), look)
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
    """The value of a header entry that `save` wrote as JSON; None when the file has no such entry. CheckpointError for
    an entry that is no JSON."""
    try:
        return parse_json(header[name]) if name in header else None
    except ValueError as error:
        raise CheckpointError(f"the header of this file is damaged at {name} ({error}); get the file again") from error


def describe(checkpoint: Checkpoint) -> str:
    """One line for the user that describes a weight file."""
    system = systems.get(checkpoint.system)
    summary = system.summary(checkpoint.config, checkpoint.weights) if system else f" {checkpoint.system}"
    return f"{checkpoint.layout}{summary}, {_dtypes(checkpoint.weights)}"


def _dtypes(weights: Mapping[str, Tensor]) -> str:
    return "/".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()}))


def _stillmotion_file(
    path: Path, header: dict[str, str], tensors: dict[str, Tensor], expect: tuple[str, ...], look: Look
) -> Checkpoint:
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"{path.name} has the format {header['format'][:50]}, this StillMotion reads {FORMAT}: update it"
        )
    name = header.get("system", "")
    if name not in expect:
        raise CheckpointError(
            f"{path.name} is a StillMotion {name[:50]!r} file: a {_either(expect)} file is needed here"
        )
    system = systems.get(name)
    try:
        config = parse_json(header["config"])
        if not isinstance(config, dict):
            raise ValueError("its config is not a table")
        check_counts(config, len(tensors))
        model = build(lambda: system.model(config), len(tensors), look) if system else None
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError, ArithmeticError) as error:
        raise CheckpointError(f"{path.name} has a header that cannot be used ({error}); get the file again") from error
    if system is not None and model is not None:
        if system.parts:
            _check_parts(system, model, tensors, path.name)
        layouts.check_weights(model, tensors, path.name)
    if header.get(DIGEST, "") not in ("", _digest(header, tensors, look)):
        raise CheckpointError(
            f"{path.name} is damaged: its weights or its config are not those that were written (their digest "
            "differs); download or copy it again"
        )
    return Checkpoint(name, config, tensors, header, FORMAT)


def _digest(header: Mapping[str, str], weights: Mapping[str, Tensor], look: Look = lambda: None) -> str:
    """The digest of the weights, their names, and what they are."""
    return digest_of(weights, f"{header['system']} {header['config']}", look)


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
    try:
        return read(path, header, weights, layout)
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path.name} looks like {_FOREIGN_TITLES[system]}, but no model has its sizes ({error}); get it again"
        ) from error


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
