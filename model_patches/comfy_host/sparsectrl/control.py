"""SparseCtrl as a ControlNet: images on some frames of a clip.

ComfyUI and other packs cut the hints of a ControlNet for context windows and for the clips of a long video. The hint of
this one is therefore a small table with a row for each frame: the number of its image, or -1, and the weight of its
mask. The images themselves, and what the network sees of them, are shared by all copies.

Shapes: k images; f frames of a clip; the U-Net's batch is n = chunks * clips * f, (n, c, h, w).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.model_management import throw_exception_if_processing_interrupted as interrupted
from torch import Tensor

from ... import checkpoint
from ...core.pictures import FITS, fit
from ...sparsectrl.config import LATENT, SparseConfig
from ...sparsectrl.model import SparseControl
from ..base.ops import operations
from ..motion.branch import BranchControl, Conditioning, attach
from ..motion.files import Typed, attention, patcher_of

__all__ = ["FITS", "LoadedSparse", "SparseControlNet", "apply_sparse", "load_sparse"]

log = logging.getLogger(__name__)


class HostedSparse(Typed, SparseControl):
    pass


@dataclass(frozen=True)
class LoadedSparse:
    """A loaded SparseCtrl network."""

    patcher: comfy.model_patcher.ModelPatcher
    config: SparseConfig
    info: str


def load_sparse(path: Path | str) -> LoadedSparse:
    """Load a SparseCtrl file. CheckpointError says what is wrong with any other file."""
    config, weights, info = checkpoint.load_sparsectrl(path, interrupted)
    with torch.device("meta"):
        module = HostedSparse(config, ops=operations, attention=attention)
    log.info("%s is %s", Path(path).name, info)
    return LoadedSparse(patcher_of(module, weights), config, info)


class SparseControlNet(BranchControl):
    """The network with its images. vae: encodes them, for a network that sees latents."""

    subject = "SparseCtrl"

    def __init__(self, network: LoadedSparse, images: Tensor, vae: Any, rule: str) -> None:
        super().__init__(network.patcher, network.config)
        self.network, self.images, self.encoder, self.rule = network, images, vae, rule
        self.process: Any = None
        self.hints: dict[Any, Tensor] = {}  # by size, device and type

    def output(self, x: Tensor, t: Tensor, context: Tensor, frames: int, cond: Any, options: Any) -> dict[str, list]:  # noqa: ARG002
        table = self.cond_hint_original
        if len(table) != frames:
            raise ValueError(
                f"SparseCtrl: it was set up for {len(table)} frames, but a clip has {frames}; set frames of Apply "
                f"SparseCtrl to {frames}"
            )
        module: Any = self.patcher.model
        z = module.encode(*self._rows(table, self._hints(x)))
        residuals = module(t, context, z.repeat(len(x) // frames, 1, 1, 1), frames)
        return {"output": residuals.down, "middle": [residuals.mid]}

    def _rows(self, table: Tensor, hints: Tensor) -> tuple[Tensor, Tensor]:
        """The hint and the mask of every frame; both are zero for a frame without an image."""
        index, weight = table.flatten(1).unbind(1)
        present = (index >= 0).to(hints).view(-1, 1, 1, 1)
        rows = hints[index.clamp(min=0).long().to(hints.device)] * present
        mask = weight.to(hints).view(-1, 1, 1, 1) * present
        return rows, mask.expand(-1, 1, *hints.shape[2:])

    def _hints(self, x: Tensor) -> Tensor:
        """What the network sees of each image, (k, channels, ., .), computed once per run for each size."""
        key = (tuple(x.shape[2:]), x.device, x.dtype)
        if key not in self.hints:
            latent = self.network.config.hint == LATENT
            scale = self.encoder.spacial_compression_encode() if latent else self.network.config.downscale
            height, width = (side * scale for side in x.shape[2:])
            pictures = torch.cat([fit(image[None], height, width, self.rule) for image in self.images])
            self.hints[key] = (self._encoded(pictures) if latent else pictures).to(x)
        return self.hints[key]

    def _encoded(self, pictures: Tensor) -> Tensor:
        """The scaled latents. Encoding may displace the models of the run, which are loaded again, as in ComfyUI."""
        models = comfy.model_management.loaded_models(only_currently_used=True)
        latents = self.encoder.encode(pictures.movedim(1, -1))
        comfy.model_management.load_models_gpu(models)
        return self.process(latents)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        super().pre_run(model, percent_to_timestep_function)
        self.process = model.process_latent_in

    def cleanup(self) -> None:
        super().cleanup()
        self.process = None
        self.hints.clear()

    def copy(self) -> "SparseControlNet":
        clone = SparseControlNet(self.network, self.images, self.encoder, self.rule)
        clone.hints = self.hints
        self.copy_to(clone)
        return clone


def apply_sparse(
    conditions: tuple[Conditioning, ...],
    network: LoadedSparse,
    images: Tensor,
    places: Mapping[int, float],
    frames: int,
    *,
    vae: Any = None,
    strength: float = 1.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    rule: str = "crop",
) -> tuple[Conditioning, ...]:
    """Copies of `conditions` with the network after the ControlNets that they already have.

    images: (k, H, W, 3) from 0 to 1, one for each frame in `places` (frame -> weight of its mask), in order; one image
    is for all of them. frames: of a clip, or of a whole long video. vae: for a network for RGB images. Conditions that
    share a ControlNet share the network, so that they run in one batch. ValueError for values that do not fit.
    """
    _check(network, images, places, frames, vae)
    control = SparseControlNet(network, images[..., :3].movedim(-1, 1).float().clamp(0, 1), vae, rule)
    table = table_of(places, len(images), frames)
    return attach(conditions, control, table, strength, (start_percent, end_percent))


def table_of(places: Mapping[int, float], images: int, frames: int) -> Tensor:
    """For each frame the number of its image, or -1, and the weight of its mask. (frames, 2, 1, 1)."""
    table = torch.zeros(frames, 2, 1, 1)
    table[:, 0] = -1.0
    for number, (frame, weight) in enumerate(sorted(places.items())):
        table[frame, :, 0, 0] = torch.tensor([float(number if images > 1 else 0), weight])
    return table


def _check(network: LoadedSparse, images: Tensor, places: Mapping[int, float], frames: int, vae: Any) -> None:
    if len(images) not in (1, len(places)):
        raise ValueError(
            f"SparseCtrl: there are {len(images)} images for {len(places)} frames with an image; connect 1 or "
            f"{len(places)} images, or change frames_with_image"
        )
    if not torch.isfinite(images).all():
        raise ValueError("SparseCtrl: an image contains NaN or infinite values; check the node that it comes from")
    if network.config.hint == LATENT and vae is None:
        raise ValueError(f"SparseCtrl: this is {network.info}, which sees latents; connect the VAE of the checkpoint")
    if frames > network.config.max_frames:
        log.info(
            "SparseCtrl: %d frames, of which it can see %d at a time; sample in context windows or in clips",
            frames,
            network.config.max_frames,
        )
