"""Sampling of a clip from a text and an image with DDIM and Eq. 5 (DreamVideo, arXiv 2312.03018).

Used for previews during training and for the ablation. The paper does not name its sampler; DDIM is that of VidRD.

Shapes: n clips, f frames, c, h, w of the latents, s h x s w pixels of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model_patches.dreamvideo.guidance import DEFAULT_SCALE, TEXT_FIRST, guided, needed
from .ddim import descend

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # x_t, t (n,), context (n, L, d), image (n, 3, ..) -> eps


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The guidance scales s_t (text) and s_i (image) of Eq. 5."""

    text: float = DEFAULT_SCALE
    image: float = DEFAULT_SCALE
    order: str = TEXT_FIRST


@torch.no_grad()
def clip(
    predict: Predict,
    noise: Tensor,  # (n, f, c, h, w)
    context: Tensor,  # (n, L, d); the embedding of the empty prompt means image to video
    empty: Tensor,  # like context, embedding of the empty prompt
    image: Tensor,  # (n, 3, s h, s w) in 0..1; a white image means text to video
    alpha_bar: Tensor,  # (T,)
    *,
    steps: int,
    scales: Scales,
) -> Tensor:
    """x_0 (n, f, c, h, w)."""

    def eps(x_t: Tensor, t: int) -> Tensor:
        return guided_eps(predict, x_t, t, context, empty, image, scales)

    return descend(eps, noise, alpha_bar, steps=steps)


def guided_eps(
    predict: Predict, x_t: Tensor, t: int, context: Tensor, empty: Tensor, image: Tensor, scales: Scales
) -> Tensor:
    """eps by Eq. 5, with the shape of x_t; all predictions that it needs are made in one batch."""
    names, blank, n = needed(scales.text, scales.image, scales.order), torch.ones_like(image), len(x_t)
    texts = [context if name in ("text", "both") else empty for name in names]
    images = [image if name in ("image", "both") else blank for name in names]
    times = torch.full((n * len(names),), t, device=x_t.device)
    predictions = predict(torch.cat([x_t] * len(names)), times, torch.cat(texts), torch.cat(images))
    return guided(dict(zip(names, predictions.split(n), strict=True)), scales.text, scales.image, scales.order)
