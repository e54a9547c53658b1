"""How strongly an image shows a style, measured without a network.

Shapes: n frames, h height, w width; images are float RGB in 0..1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .sprites import COLOURS

LIGHTS = (0.88, 1.0, 1.12, 1.24)  # brightness factors: a sprite is brighter at the top and darker at the bottom
NEAR = 0.2  # largest RGB distance at which a pixel counts as having the sprite's colour
GLOWS = 0.06  # threshold of `glow`: lies between the largest plain and the smallest glowing value, after decoding


def glow(frames: Tensor, colours: list[str]) -> Tensor:
    """How far the surroundings of the sprite are shifted from the background towards the sprite's colour: (n,), 0 to 1.

    Pixels 2 to 4 pixels away from the sprite are compared with pixels of the same row that are more than 12 away. The
    sprite is located by its colour; `colours` holds n names of sprites.COLOURS. NaN where no pixel has that colour.
    """
    colour = torch.tensor([COLOURS[name] for name in colours]).view(-1, 3, 1, 1)
    sprite = _has_colour(frames, colour)
    band = (_dilate(sprite, 4) - _dilate(sprite, 1)).bool()
    background = _background(frames, _dilate(sprite, 12).bool())
    direction = colour - background
    shift = ((frames - background) * direction).sum(1, keepdim=True)
    return (shift * band).sum((1, 2, 3)) / (direction.square().sum(1, keepdim=True) * band).sum((1, 2, 3))


def _has_colour(frames: Tensor, colour: Tensor) -> Tensor:
    """1 where a pixel has the colour at any brightness, else 0: (n, 1, h, w)."""
    distances = [(frames - (colour * light).clamp(max=1)).norm(dim=1, keepdim=True) for light in LIGHTS]
    return (torch.stack(distances).amin(0) < NEAR).float()


def _dilate(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask, 2 * pixels + 1, 1, pixels)


def _background(frames: Tensor, near: Tensor) -> Tensor:
    """The median of each row's pixels that are not near the sprite; for a row without any, that of the whole image."""
    far = frames.masked_fill(near, torch.nan)
    rows = far.nanmedian(3, keepdim=True).values
    return torch.where(rows.isnan(), far.flatten(2).nanmedian(2).values[..., None, None], rows)
