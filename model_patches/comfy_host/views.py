"""What the view nodes need of ComfyUI: noise as it reaches a sampler."""

from typing import Any

from torch import Tensor

from .guidance import video_frames


def noise_clips(latent: dict[str, Any], noise: Any | None, frames: int) -> Tensor:
    """The noise that a sampler would get for `latent`, or the latent itself, as clips: (k, f, c, h, w).

    noise: ComfyUI's NOISE, None to take the latent. ValueError when the batch is not whole clips of `frames`.
    """
    values: Tensor = latent["samples"] if noise is None else noise.generate_noise(latent)
    frames = video_frames(values, frames, "noise normality")
    return values.movedim(2, 1) if values.ndim == 5 else values.unflatten(0, (-1, frames))
