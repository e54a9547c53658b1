"""Resizing of images, the same in every host, in training and in evaluation.

Shapes: H height, W width in pixels.
"""

from torch import Tensor
from torch.nn import functional as F

FITS = ("crop", "pad", "stretch")


def fit(image: Tensor, height: int, width: int, rule: str = "crop", *, mode: str = "bilinear") -> Tensor:
    """Resize (1, 3, H, W) with antialiasing. If the aspect ratio differs: "crop" keeps the middle; "pad" adds white
    edges; "stretch" distorts the image. mode: that of torch's interpolate. ValueError for another rule."""
    if rule not in FITS:
        raise ValueError(f"image: fit is {rule!r}; choose one of {', '.join(FITS)}")
    high, wide = image.shape[-2:]
    if rule == "crop":
        image = _middle(image, *_largest(high, wide, height, width))
    inside = (height, width)
    if rule == "pad":
        inside = _largest(height, width, high, wide)
    if image.shape[-2:] != inside:
        image = F.interpolate(image, inside, mode=mode, antialias=True).clamp(0, 1)
    if inside == (height, width):
        return image
    top, left = (height - inside[0]) // 2, (width - inside[1]) // 2
    return F.pad(image, (left, width - inside[1] - left, top, height - inside[0] - top), value=1.0)


def same_aspect(high: int, wide: int, height: int, width: int) -> bool:
    """Whether resizing crops, pads or stretches by at most one pixel."""
    return _largest(high, wide, height, width) == (high, wide)


def _largest(high: int, wide: int, height: int, width: int) -> tuple[int, int]:
    """The largest rectangle inside high x wide with the aspect ratio of height x width, in whole pixels."""
    if high * width >= wide * height:
        return max(1, min(high, round(wide * height / width))), wide
    return high, max(1, min(wide, round(high * width / height)))


def _middle(image: Tensor, height: int, width: int) -> Tensor:
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]
