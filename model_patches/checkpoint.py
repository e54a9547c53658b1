"""The only reader and writer of weight files.

Our own files are safetensors whose metadata has `format` = "stillmotion/1", `system` (what the weights are: "motion",
"harivo", "vidrd", "artv", "dreamvideo", "pocket", ...), `config` (JSON) and whatever the writer adds (`base`, `step`,
...), all strings. Other people's files are read through `layouts`. Pickles (.ckpt, .pt, .bin, .pth) are opened with
torch's weights-only reader alone.
"""

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from . import control_layouts, layouts
from .artv.config import ArtvConfig
from .artv.model import ArtvModel
from .artv.places import sites
from .assembly import dreamvideo_model
from .core.config import MotionConfig
from .core.temporal import MotionModel
from .dreamvideo.config import DreamVideoConfig
from .files import packed, replacing
from .harivo.config import HarivoConfig
from .harivo.model import HarivoModel
from .layouts import CheckpointError
from .vidrd.config import DecoderConfig, VidrdConfig
from .vidrd.decoder import TemporalDecoder
from .vidrd.model import VidrdModel

FORMAT = "stillmotion/1"
MOTION = "motion"
HARIVO = "harivo"
VIDRD = "vidrd"
VIDRD_DECODER = "vidrd_decoder"
ARTV = "artv"
DREAMVIDEO = "dreamvideo"
FOREIGN = (MOTION, VIDRD, VIDRD_DECODER)  # systems of which other people's files are read
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
    "motion_of",
    "save",
]


@dataclass(frozen=True)
class Checkpoint:
    """A file's content. Motion weights are in AnimateDiff's keys whatever layout the file had, VidRD's in its own."""

    system: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    header: dict[str, str]
    layout: str


def load(path: Path | str, *, expect: str | Sequence[str] = MOTION) -> Checkpoint:
    """Read a weight file that is an `expect` ("motion", "harivo", "vidrd", "pocket", ...), or one of several.

    CheckpointError, naming the file and what it is, when it is missing, truncated, of another kind, lacks weights that
    its config tells of, or holds NaN or infinite weights.
    """
    path = Path(path)
    expect = (expect,) if isinstance(expect, str) else tuple(expect)
    header, tensors = _read(path)
    if header.get("format", "").startswith("stillmotion/"):
        found = _own(path, header, tensors, expect)
    elif set(expect) & set(FOREIGN):
        found = _foreign(path, header, tensors, expect)
    else:
        raise CheckpointError(
            f"{path.name} has no StillMotion header: a StillMotion {_either(expect)} file is needed here"
        )
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
    try:
        with replacing(path) as partial:
            partial.write_bytes(packed(weights, metadata))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} could not be written ({error}); free some space or choose another folder"
        ) from error


def load_controlnet(path: Path | str) -> Checkpoint:
    """A ControlNet of Stable Diffusion as a DreamVideo file without temporal layers, for a training to start from.

    CheckpointError when it is none, of another build, or holds NaN.
    """
    path = Path(path)
    header, tensors = _read(path)
    branch, weights = control_layouts.from_controlnet(layouts.unwrap(tensors), path.name)
    _check_finite(weights, path.name)
    config = DreamVideoConfig(branch=branch).to_dict()
    return Checkpoint(DREAMVIDEO, config, {f"branch.{k}": v for k, v in weights.items()}, header, "ControlNet")


def motion_of(checkpoint: Checkpoint) -> Checkpoint:
    """The temporal layers of a DreamVideo file as the VidRD file that they are; any other checkpoint as it is.

    CheckpointError when the file holds the branch alone.
    """
    if checkpoint.system != DREAMVIDEO:
        return checkpoint
    config = DreamVideoConfig.from_dict(checkpoint.config)
    if not config.motion or config.layers is None:
        raise CheckpointError(
            "this is a DreamVideo file without a motion model: load it with Load Retention Branch, and the motion "
            "model that it was trained with, or another for the same base, here"
        )
    weights = {k.removeprefix("motion."): v for k, v in checkpoint.weights.items() if k.startswith("motion.")}
    return Checkpoint(VIDRD, dict(config.layers), weights, checkpoint.header, f"{checkpoint.layout} DreamVideo:")


def header_json(header: Mapping[str, str], name: str) -> Any:
    """The value of a header entry that `save` wrote as JSON; None when the file has no such entry."""
    return json.loads(header[name]) if name in header else None


def describe(checkpoint: Checkpoint) -> str:
    """One line for the user on what a file with temporal layers was taken for."""
    dtypes = {str(v.dtype).removeprefix("torch.") for v in checkpoint.weights.values()}
    what = WORDS[checkpoint.system](checkpoint)
    return f"{checkpoint.layout}{what}, {'/'.join(sorted(dtypes))}"


def _motion_words(checkpoint: Checkpoint) -> str:
    whole = HarivoConfig.from_dict(checkpoint.config) if checkpoint.system == HARIVO else None
    config = whole.motion if whole else MotionConfig.from_dict(checkpoint.config)
    modules = sum(1 for k in checkpoint.weights if k.endswith(".temporal_transformer.norm.weight"))
    return (
        f"{f' HARIVO with {_parts(whole)}' if whole else ''}: {modules} modules for block channels "
        f"{config.block_channels}, {'with' if config.mid_block else 'no'} middle block, up to {config.max_frames} "
        f"frames, {_betas(config.beta_schedule)}"
    )


def _vidrd_words(checkpoint: Checkpoint) -> str:
    config = VidrdConfig.from_dict(checkpoint.config)
    convs, attentions = (
        sum(1 for k in checkpoint.weights if k.endswith(name)) for name in (".convs.0.weight", ".temp_norm.weight")
    )
    spatial = "with" if config.spatial else "without"
    return (
        f" VidRD: {convs} Temp-Convs and {attentions} Temp-Attns for block channels "
        f"{config.block_channels}, {spatial} fine-tuned spatial transformers, trained on {config.frames} frames, "
        f"{_betas(config.beta_schedule)}"
    )


def _decoder_words(checkpoint: Checkpoint) -> str:
    config = DecoderConfig.from_dict(checkpoint.config)
    modules = sum(1 for k in checkpoint.weights if k.endswith(".convs.0.weight"))
    statistics = "clip by clip" if config.group_norm == "per_clip" else "as a stream"
    return f" VidRD decoder: {modules} Temp-Convs for block channels {config.block_channels}, decodes {statistics}"


def _artv_words(checkpoint: Checkpoint) -> str:
    config = ArtvConfig.from_dict(checkpoint.config)
    return (
        f" ART-V: adapter and {len(sites(config))} anchor blocks for block channels {config.block_channels}, mask "
        f"network with channels {config.mask_channels} for text {config.context_dim} wide, {config.static} static part"
    )


def _dreamvideo_words(checkpoint: Checkpoint) -> str:
    config = DreamVideoConfig.from_dict(checkpoint.config)
    branch = config.branch
    temporal = "frozen temporal layers" if branch.temporal == "frozen" else "no temporal layers"
    return (
        f" DreamVideo: a retention branch for block channels {branch.block_channels} and text {branch.context_dim} "
        f"wide, {temporal} in it, {'with' if config.motion else 'without'} a motion model"
    )


def _betas(schedule: str | None) -> str:
    return f"{schedule} betas" if schedule else "betas of the base model"


WORDS: dict[str, Callable[[Checkpoint], str]] = {
    MOTION: _motion_words,
    HARIVO: _motion_words,
    VIDRD: _vidrd_words,
    VIDRD_DECODER: _decoder_words,
    ARTV: _artv_words,
    DREAMVIDEO: _dreamvideo_words,
}


def _parts(config: HarivoConfig) -> str:
    mapping = f"a mapping network {config.mapping.width} wide" if config.mapping else "no mapping network"
    if config.tokens is None:
        return f"{mapping} and no frame-wise tokens"
    return f"{mapping} and {config.tokens.tokens} tokens a frame for text {config.tokens.context_dim} wide"


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


def _own(path: Path, header: dict[str, str], tensors: dict[str, Tensor], expect: tuple[str, ...]) -> Checkpoint:
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"{path.name} has the format {header['format']}, this StillMotion reads {FORMAT}: update it"
        )
    system = header.get("system", "")
    if system not in expect:
        raise CheckpointError(f"{path.name} is a StillMotion {system!r} file: a {_either(expect)} file is needed here")
    try:
        config = json.loads(header["config"])
        model = MODELS[system](config) if system in MODELS else None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name} has a header that cannot be used ({error}); get the file again") from error
    if model is not None:
        _check_parts(model, tensors, path.name)
        layouts.check_weights(model, tensors, path.name)
    return Checkpoint(system, config, tensors, header, FORMAT)


def _either(systems: tuple[str, ...]) -> str:
    return " or ".join(repr(system) for system in systems)


def _motion_model(config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return MotionModel(MotionConfig.from_dict(config))


def _harivo_model(config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return HarivoModel(HarivoConfig.from_dict(config))


def _vidrd_model(config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return VidrdModel(VidrdConfig.from_dict(config))


def _decoder_model(config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return TemporalDecoder(DecoderConfig.from_dict(config))


def _artv_model(config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return ArtvModel(ArtvConfig.from_dict(config))


def _dreamvideo_model(config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return dreamvideo_model(DreamVideoConfig.from_dict(config))


# What a file of each system must hold, without memory for its weights.
MODELS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    MOTION: _motion_model,
    HARIVO: _harivo_model,
    VIDRD: _vidrd_model,
    VIDRD_DECODER: _decoder_model,
    ARTV: _artv_model,
    DREAMVIDEO: _dreamvideo_model,
}


def _check_parts(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """A component that the config tells of and the file has no weight of is named as a whole."""
    name = {HarivoModel: "a HARIVO", ArtvModel: "an ART-V"}.get(type(model))
    if name is None:
        return
    given = {key.split(".")[0] for key in weights}
    lost = [part for part, _ in model.named_children() if part not in given]
    if lost:
        raise CheckpointError(
            f"{source} is {name} file whose config tells of {', '.join(lost)}, but it has no such weights; it was "
            "cut down or is of a run that failed, get the file again or export it again"
        )


def _foreign(path: Path, header: dict[str, str], content: Mapping[str, Any], expect: tuple[str, ...]) -> Checkpoint:
    weights = layouts.unwrap(content)
    layout = layouts.identify(weights, path.name)
    system = {layouts.VIDRD: VIDRD, layouts.VIDRD_DECODER: VIDRD_DECODER}.get(layout, MOTION)
    if system not in expect:
        raise CheckpointError(f"{path.name} is {_KINDS[system]}: a {_either(expect)} file is needed here")
    if system == VIDRD:
        weights = layouts.from_vidrd(weights)
        return Checkpoint(VIDRD, layouts.vidrd_config(weights, path.name), weights, header, "as published:")
    if system == VIDRD_DECODER:
        weights = layouts.from_vidrd_decoder(weights)
        config = layouts.vidrd_decoder_config(weights, path.name)
        return Checkpoint(VIDRD_DECODER, config, weights, header, "as published:")
    return _foreign_motion(path, header, weights, layout)


_KINDS = {
    MOTION: "a motion model",
    VIDRD: "a VidRD (Reuse and Diffuse) model, for Load Motion Model",
    VIDRD_DECODER: "an autoencoder with VidRD's temporal decoder, for Temporal Decoder",
}


def _foreign_motion(path: Path, header: dict[str, str], weights: dict[str, Tensor], layout: str) -> Checkpoint:
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
