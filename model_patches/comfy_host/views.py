"""What the view nodes read from a ComfyUI MODEL: noise, the mapping network, attention to the frame-wise tokens.

Ordinary runs are not affected: the mapping network is called directly, and attention is recorded in one separate model
call on a temporary clone.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.levels import alpha_bar_from_sigma
from ..core.maps import column_maps
from ..harivo.model import HarivoModel
from .guidance.mitigating import video_frames
from .motion.apply import KEY, Use
from .motion.harivo import mapped

VIEW = "stillmotion.view"
ModelPatcher = comfy.model_patcher.ModelPatcher
Mapping = Callable[[Tensor, int], Tensor]


def with_progress(items: Iterable[Tensor], total: int) -> Iterator[Tensor]:
    """Yield the items with ComfyUI's progress bar; cancelling in ComfyUI stops at the next item."""
    bar = comfy.utils.ProgressBar(total)
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
        bar.update(1)


def noise_clips(latent: dict[str, Any], noise: Any | None, frames: int) -> Tensor:
    """The noise that a sampler would get for `latent`, or the latent itself, as clips: (k, f, c, h, w).

    noise: ComfyUI's NOISE, or None for the latent itself. ValueError when the batch is not whole clips of `frames`.
    """
    values: Tensor = latent["samples"] if noise is None else noise.generate_noise(latent)
    frames = video_frames(values, frames, "noise normality")
    return values.movedim(2, 1) if values.ndim == 5 else values.unflatten(0, (-1, frames))


STRENGTHS = {"mapping": "mapping_strength", "tokens": "token_strength"}  # inputs of Apply Motion Model


def _harivo(model: ModelPatcher, part: str, subject: str) -> tuple[ModelPatcher, HarivoModel, Use]:
    """The HARIVO model on a MODEL whose `part` is active. ValueError says what to do if there is none."""
    for patcher in model.get_additional_models_with_key(KEY):
        candidate, use = patcher.model, patcher.get_attachment(KEY)
        present = isinstance(candidate, HarivoModel) and getattr(candidate, part) is not None
        if present and isinstance(use, Use) and getattr(use, part):
            return patcher, candidate, use
    raise ValueError(
        f"{subject}: this MODEL has no active {part}; apply a HARIVO file that contains it (Load Motion Model shows "
        f"the content of a file) with Apply Motion Model and {STRENGTHS[part]} above 0"
    )


def mapping_of(model: ModelPatcher) -> tuple[Mapping, int]:
    """The mapping network of a MODEL at its strength, on its device, and the frames of a clip."""
    patcher, harivo, use = _harivo(model, "mapping", "mapping network")
    comfy.model_management.load_models_gpu([patcher])
    device = patcher.load_device

    def mapping(x: Tensor, frames: int) -> Tensor:
        return mapped(harivo, x.to(device), frames, use.mapping).to(x)

    return mapping, use.frames


def mapped_noise(model: ModelPatcher, clips: Tensor) -> Tensor:
    """Noise clips (k, f, c, h, w), the U-Net's input at t = T, after the mapping network."""
    mapping, _ = mapping_of(model)
    return torch.stack([mapping(clip, len(clip)) for clip in clips])


def mapping_probe(model: ModelPatcher, latent: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `evaluation.drawing.probes.mapping_shift`: the network, latents scaled for the U-Net, and levels."""
    mapping, frames = mapping_of(model)
    video_frames(latent["samples"], frames, "mapping shift")
    sigmas: Tensor = model.get_model_object("model_sampling").sigmas  # type: ignore[union-attr]
    latents = model.model.process_latent_in(latent["samples"])
    return {
        "mapping": mapping,
        "latents": latents.float(),
        "frames": frames,
        "alpha_bars": alpha_bar_from_sigma(sigmas),
        "timesteps": range(0, len(sigmas), max(1, len(sigmas) // 24)),
    }


@dataclass
class AttentionRecorder:
    """Records the attention of pixels to the frame-wise tokens in one model call."""

    frames: int
    text: int  # tokens of the prompt
    size: tuple[int, int]  # of the latent
    unet: Any = None
    rows: slice = field(default_factory=lambda: slice(0))  # of the batch: the first clip under the prompt
    columns: slice = field(default_factory=lambda: slice(0))  # of the context: the frame-wise tokens
    maps: list[Tensor] = field(default_factory=list)  # per layer (f, n, h, w)

    def enter(self, executor: Any, x: Tensor, timesteps: Any, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Wrapper around the U-Net, inside the motion model's, where the context includes the frame-wise tokens."""
        chunks = list(args[2]["cond_or_uncond"])
        first = chunks.index(0) * (len(x) // len(chunks))
        self.unet = executor.class_obj
        self.rows, self.columns = slice(first, first + self.frames), slice(self.text, context.shape[1])
        return executor(x, timesteps, context, *args, **kwargs)

    def attend(
        self, x: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """attn2 patch that only reads: it returns its inputs unchanged."""
        if self.columns.start < self.columns.stop:
            h, w = options["activations_shape"][2:]
            kind, number = options["block"]
            layer = self._layer(kind, number, options["block_index"])
            q, k = layer.to_q(x[self.rows]), layer.to_k(context[self.rows])
            maps = column_maps(q, k, layer.heads, self.columns).unflatten(2, (h, w))
            self.maps.append(F.interpolate(maps, self.size, mode="bilinear", align_corners=False))
        return x, context, value

    def _layer(self, kind: str, number: int, index: int) -> Any:
        blocks = {"input": self.unet.input_blocks, "output": self.unet.output_blocks}
        layers = blocks[kind][number] if kind in blocks else self.unet.middle_block
        return next(layer for layer in layers if isinstance(layer, SpatialTransformer)).transformer_blocks[index].attn2


@dataclass(frozen=True)
class TokenAttention:
    maps: Tensor  # (f, n, h, w), means over heads and layers
    timestep: float


def token_attention(
    model: ModelPatcher, positive: list[Any], latent: dict[str, Any], *, percent: float, seed: int
) -> TokenAttention:
    """Attention to the frame-wise tokens in one call of the MODEL, on `latent` with noise at `percent` of the schedule.

    percent: 0 is pure noise, 1 the finished latent. Only the first clip and prompt are used. ValueError when no tokens
    are active.
    """
    _, _, use = _harivo(model, "tokens", "frame token attention")
    samples = latent["samples"]
    video_frames(samples, use.frames, "frame token attention")
    recorder = AttentionRecorder(use.frames, positive[0][0].shape[1], (samples.shape[-2], samples.shape[-1]))
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, VIEW, recorder.enter)
    clone.set_model_attn2_patch(recorder.attend)
    sampling: Any = model.get_model_object("model_sampling")
    sigma = torch.tensor(min(float(sampling.percent_to_sigma(percent)), float(sampling.sigma_max)))
    sampler = comfy.samplers.KSAMPLER(_one_call)
    noise = comfy.sample.prepare_noise(samples, seed)
    levels = torch.stack([sigma, torch.zeros(())])
    comfy.sample.sample_custom(
        clone, noise, 1.0, sampler, levels, positive, positive, samples, disable_pbar=True, seed=seed
    )
    if not recorder.maps:
        raise ValueError(
            f"frame token attention: the motion model is not active at {percent:g} of the schedule; choose a percent "
            "between its start_percent and end_percent"
        )
    return TokenAttention(torch.stack(recorder.maps).mean(0), float(sampling.timestep(sigma)))


def _one_call(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], **_: Any) -> Tensor:
    """A sampler that calls the model once and returns x unchanged."""
    model(x, sigmas[0] * x.new_ones(len(x)), **extra_args)
    return x
