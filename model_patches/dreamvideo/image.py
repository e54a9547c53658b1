"""The reference image: what pictures become before the branch sees them. The same in every host and in training.

Shapes: H height, W width in pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

FITS = ("crop", "pad", "stretch")


def pixels(image: Tensor) -> Tensor:
    """A picture (H, W), (H, W, 1 to 4) or (1, H, W, 1 to 4) as (1, 3, H, W), float32 from 0 to 1.

    Whole numbers are divided by the largest of their type (8 and 16 bit). Grey becomes colour. Alpha is laid over
    white, the null image. ValueError for several pictures, other shapes, and values that are no numbers.
    """
    image = image.detach()
    if not image.is_floating_point():
        image = image.float() / torch.iinfo(image.dtype).max
    image = image[..., None] if image.ndim == 2 else image
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or image.shape[-1] not in (1, 2, 3, 4) or 0 in image.shape:
        raise ValueError(
            f"reference image: it has the shape {tuple(image.shape)}; needed is (1, height, width, channels) with 1 "
            "to 4 channels"
        )
    if len(image) != 1:
        raise ValueError(
            f"reference image: {len(image)} images were given, one is needed; choose one of the batch (Get Image from "
            "Batch), or connect another"
        )
    if not torch.isfinite(image).all():
        raise ValueError("reference image: it has values that are no numbers; the node that made it failed")
    return _colour(image.float().clamp(0, 1)).permute(0, 3, 1, 2).contiguous()


def _colour(image: Tensor) -> Tensor:
    """(1, H, W, 1 to 4) -> (1, H, W, 3)."""
    colour, alpha = (image, None) if image.shape[-1] % 2 else (image[..., :-1], image[..., -1:])
    colour = colour.expand(-1, -1, -1, 3)
    return colour if alpha is None else alpha * colour + (1 - alpha)


def fit(image: Tensor, height: int, width: int, rule: str = "crop") -> Tensor:
    """(1, 3, H, W) at another size, antialiased. Where the aspect differs: "crop", the middle is kept; "pad", white
    edges are added; "stretch". ValueError for another rule."""
    if rule not in FITS:
        raise ValueError(f"reference image: fit is {rule!r}; choose one of {', '.join(FITS)}")
    high, wide = image.shape[-2:]
    if rule == "crop":
        image = _middle(image, *_largest(high, wide, height, width))
    inside = (height, width)
    if rule == "pad":
        inside = _largest(height, width, high, wide)
    if image.shape[-2:] != inside:
        image = F.interpolate(image, inside, mode="bilinear", antialias=True).clamp(0, 1)
    if inside == (height, width):
        return image
    top, left = (height - inside[0]) // 2, (width - inside[1]) // 2
    return F.pad(image, (left, width - inside[1] - left, top, height - inside[0] - top), value=1.0)


def white(height: int, width: int, like: Tensor) -> Tensor:
    """The null image (section 4.3). (1, 3, height, width)."""
    return torch.ones(1, 3, height, width, device=like.device, dtype=like.dtype)


def same_aspect(high: int, wide: int, height: int, width: int) -> bool:
    """Whether nothing is cut off, added or stretched by more than a pixel."""
    return _largest(high, wide, height, width) == (high, wide)


def _largest(high: int, wide: int, height: int, width: int) -> tuple[int, int]:
    """The largest rectangle within high x wide with the aspect of height x width, in whole pixels."""
    if high * width >= wide * height:
        return max(1, min(high, round(wide * height / width))), wide
    return high, max(1, min(wide, round(high * width / height)))


def _middle(image: Tensor, height: int, width: int) -> Tensor:
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]
