"""How much of a style is in a picture, measured without a network.

Shapes: n frames, h height, w width; images are float RGB in 0..1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .sprites import COLOURS

LIGHTS = (0.88, 1.0, 1.12, 1.24)  # a sprite is brighter above and darker below
NEAR = 0.2  # distance in RGB up to which a pixel has a sprite's colour
GLOWS = 0.06  # of `glow`: between the most that plain sprites have and the least that glowing ones have, decoded


def glow(frames: Tensor, colours: list[str]) -> Tensor:
    """How far the surroundings of the sprite went from the background to the sprite's colour, 0 to 1: (n,).

    Compared are the pixels 2 to 4 off the sprite with those of the same row more than 12 off. Pixels of the sprite are
    known by its colour, told by `colours` (n names of sprites.COLOURS). NaN where there is none of that colour.
    """
    colour = torch.tensor([COLOURS[name] for name in colours]).view(-1, 3, 1, 1)
    sprite = _has_colour(frames, colour)
    band = (_grown(sprite, 4) - _grown(sprite, 1)).bool()
    background = _background(frames, _grown(sprite, 12).bool())
    way = colour - background
    gone = ((frames - background) * way).sum(1, keepdim=True)
    return (gone * band).sum((1, 2, 3)) / (way.square().sum(1, keepdim=True) * band).sum((1, 2, 3))


def _has_colour(frames: Tensor, colour: Tensor) -> Tensor:
    """(n, 1, h, w), 1 or 0."""
    distances = [(frames - (colour * light).clamp(max=1)).norm(dim=1, keepdim=True) for light in LIGHTS]
    return (torch.stack(distances).amin(0) < NEAR).float()


def _grown(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask, 2 * pixels + 1, 1, pixels)


def _background(frames: Tensor, near: Tensor) -> Tensor:
    """The median of each row's pixels that are not near the sprite, or of all such where a row has none."""
    far = frames.masked_fill(near, torch.nan)
    rows = far.nanmedian(3, keepdim=True).values
    return torch.where(rows.isnan(), far.flatten(2).nanmedian(2).values[..., None, None], rows)
