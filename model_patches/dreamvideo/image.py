"""Preparation of the reference image for the branch, the same in every host and in training.

Shapes: H height, W width in pixels.
"""

import torch
from torch import Tensor


def pixels(image: Tensor) -> Tensor:
    """A picture (H, W), (H, W, 1 to 4) or (1, H, W, 1 to 4) as (1, 3, H, W), float32 from 0 to 1.

    Integers are divided by the largest value of their type (8 and 16 bit). Grey images become RGB. Images with alpha
    are composited over white, the null image. ValueError for several pictures, other shapes, and NaN or infinite
    values.
    """
    image = image.detach()
    if not image.is_floating_point():
        image = image.float() / torch.iinfo(image.dtype).max
    image = image[..., None] if image.ndim == 2 else image
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or image.shape[-1] not in (1, 2, 3, 4) or 0 in image.shape:
        raise ValueError(
            f"reference image: it has the shape {tuple(image.shape)}; it must be (1, height, width, channels) with 1 "
            "to 4 channels"
        )
    if len(image) != 1:
        raise ValueError(
            f"reference image: the input has {len(image)} images, but one is needed; select one of the batch (Get "
            "Image from Batch), or connect a single image"
        )
    if not torch.isfinite(image).all():
        raise ValueError("reference image: it contains NaN or infinite values; check the node that it comes from")
    return _colour(image.float().clamp(0, 1)).permute(0, 3, 1, 2).contiguous()


def _colour(image: Tensor) -> Tensor:
    """(1, H, W, 1 to 4) -> (1, H, W, 3)."""
    colour, alpha = (image, None) if image.shape[-1] % 2 else (image[..., :-1], image[..., -1:])
    colour = colour.expand(-1, -1, -1, 3)
    return colour if alpha is None else alpha * colour + (1 - alpha)


def white(height: int, width: int, like: Tensor) -> Tensor:
    """The null image (section 4.3). (1, 3, height, width)."""
    return torch.ones(1, 3, height, width, device=like.device, dtype=like.dtype)
