"""The registry of systems whose weights a file can contain. Code that depends on the kind of a file uses `get`.

Other packages add a system with `register`, once, before its first file is read or written. The entries of this package
are at the end of the module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .artv.config import ArtvConfig
from .artv.model import ArtvModel
from .artv.places import sites
from .assembly import dreamvideo_model
from .core.config import MotionConfig
from .core.temporal import MotionModel
from .dreamvideo.config import DreamVideoConfig
from .harivo.config import HarivoConfig
from .harivo.model import HarivoModel
from .vidrd.config import DecoderConfig, VidrdConfig
from .vidrd.decoder import TemporalDecoder
from .vidrd.model import VidrdModel

MOTION = "motion"
HARIVO = "harivo"
VIDRD = "vidrd"
VIDRD_DECODER = "vidrd_decoder"
ARTV = "artv"
DREAMVIDEO = "dreamvideo"

Config = Mapping[str, Any]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class WeightSystem:
    """Description of the weight files of one system."""

    name: str
    """The value of `system` in the header of a file."""
    label: str
    """Name of the system in messages, for example "HARIVO"."""
    model: Callable[[Config], nn.Module]
    """The module for the config of a file. A file must contain all of its weights, with the same sizes."""
    summary: Callable[[Config, Weights], str]
    """One line for the user on the content of a file."""
    parts: bool = False
    """Whether each child of the model is a component, which is named as a whole if it is missing in a file."""
    layers: str = ""
    """The system of the temporal layers in a file, if they are only a part of it."""
    temporal: Callable[[Config, Weights], tuple[dict[str, Any], dict[str, Tensor]] | None] | None = None
    """Config and weights of these layers; None if a file has no temporal layers."""

    @property
    def title(self) -> str:
        """The label with its article: "a HARIVO", "an ART-V"."""
        return f"{'an' if self.label[0] in 'AEIOU' else 'a'} {self.label}"


_SYSTEMS: dict[str, WeightSystem] = {}


def register(system: WeightSystem) -> WeightSystem:
    """Add a system. ValueError when the name is already used by another system."""
    if _SYSTEMS.setdefault(system.name, system) is not system:
        raise ValueError(f"there is already a weight system called {system.name!r}; choose another name")
    return system


def unregister(name: str) -> None:
    """Remove a system that was added with `register`."""
    _SYSTEMS.pop(name, None)


def get(name: str) -> WeightSystem | None:
    """The system with this name, or None."""
    return _SYSTEMS.get(name)


def with_layers(*layers: str) -> tuple[str, ...]:
    """The systems whose files are, or contain, temporal layers of these systems."""
    return tuple(name for name, system in _SYSTEMS.items() if name in layers or system.layers in layers)


def _betas(schedule: str | None) -> str:
    return f"{schedule} betas" if schedule else "betas of the base model"


def _count(weights: Weights, suffix: str) -> int:
    return sum(1 for name in weights if name.endswith(suffix))


def _modules(config: MotionConfig, weights: Weights) -> str:
    return (
        f"{_count(weights, '.temporal_transformer.norm.weight')} modules for block channels {config.block_channels}, "
        f"{'with' if config.mid_block else 'no'} middle block, up to {config.max_frames} frames, "
        f"{_betas(config.beta_schedule)}" + (", image norms over the clip" if config.image_norm == "per_clip" else "")
    )


def _motion_summary(config: Config, weights: Weights) -> str:
    return f": {_modules(MotionConfig.from_dict(config), weights)}"


def _harivo_summary(config: Config, weights: Weights) -> str:
    harivo = HarivoConfig.from_dict(config)
    return f" HARIVO with {_harivo_parts(harivo)}: {_modules(harivo.motion, weights)}"


def _harivo_parts(config: HarivoConfig) -> str:
    mapping = f"a mapping network {config.mapping.width} wide" if config.mapping else "no mapping network"
    if config.tokens is None:
        return f"{mapping} and no frame-wise tokens"
    return f"{mapping} and {config.tokens.tokens} tokens a frame for text {config.tokens.context_dim} wide"


def _harivo_layers(config: Config, weights: Weights) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return HarivoConfig.from_dict(config).motion.to_dict(), _below(weights, "temporal.")


def _vidrd_summary(config: Config, weights: Weights) -> str:
    vidrd = VidrdConfig.from_dict(config)
    convs, attentions = _count(weights, ".convs.0.weight"), _count(weights, ".temp_norm.weight")
    return (
        f" VidRD: {convs} Temp-Convs and {attentions} Temp-Attns for block channels {vidrd.block_channels}, "
        f"{'with' if vidrd.spatial else 'without'} fine-tuned spatial transformers, trained on {vidrd.frames} frames, "
        f"{_betas(vidrd.beta_schedule)}"
    )


def _decoder_summary(config: Config, weights: Weights) -> str:
    decoder = DecoderConfig.from_dict(config)
    statistics = "clip by clip" if decoder.group_norm == "per_clip" else "as a stream"
    return (
        f" VidRD decoder: {_count(weights, '.convs.0.weight')} Temp-Convs for block channels {decoder.block_channels}, "
        f"decodes {statistics}"
    )


def _artv_summary(config: Config, _weights: Weights) -> str:
    artv = ArtvConfig.from_dict(config)
    return (
        f" ART-V: adapter and {len(sites(artv))} anchor blocks for block channels {artv.block_channels}, mask network "
        f"with channels {artv.mask_channels} for text {artv.context_dim} wide, {artv.static} static part"
    )


def _dreamvideo_summary(config: Config, _weights: Weights) -> str:
    dreamvideo = DreamVideoConfig.from_dict(config)
    branch = dreamvideo.branch
    temporal = "frozen temporal layers" if branch.temporal == "frozen" else "no temporal layers"
    return (
        f" DreamVideo: a retention branch for block channels {branch.block_channels} and text {branch.context_dim} "
        f"wide, {temporal} in it, {'with' if dreamvideo.motion else 'without'} a motion model"
    )


def _dreamvideo_layers(config: Config, weights: Weights) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    dreamvideo = DreamVideoConfig.from_dict(config)
    if not dreamvideo.motion or dreamvideo.layers is None:
        return None
    return dict(dreamvideo.layers), _below(weights, "motion.")


def _below(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


register(
    WeightSystem(
        name=MOTION,
        label="motion",
        model=lambda config: MotionModel(MotionConfig.from_dict(config)),
        summary=_motion_summary,
    )
)
register(
    WeightSystem(
        name=HARIVO,
        label="HARIVO",
        model=lambda config: HarivoModel(HarivoConfig.from_dict(config)),
        summary=_harivo_summary,
        parts=True,
        layers=MOTION,
        temporal=_harivo_layers,
    )
)
register(
    WeightSystem(
        name=VIDRD,
        label="VidRD",
        model=lambda config: VidrdModel(VidrdConfig.from_dict(config)),
        summary=_vidrd_summary,
    )
)
register(
    WeightSystem(
        name=VIDRD_DECODER,
        label="VidRD decoder",
        model=lambda config: TemporalDecoder(DecoderConfig.from_dict(config)),
        summary=_decoder_summary,
    )
)
register(
    WeightSystem(
        name=ARTV,
        label="ART-V",
        model=lambda config: ArtvModel(ArtvConfig.from_dict(config)),
        summary=_artv_summary,
        parts=True,
    )
)
register(
    WeightSystem(
        name=DREAMVIDEO,
        label="DreamVideo",
        model=lambda config: dreamvideo_model(DreamVideoConfig.from_dict(config)),
        summary=_dreamvideo_summary,
        layers=VIDRD,
        temporal=_dreamvideo_layers,
    )
)
