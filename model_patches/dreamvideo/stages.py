"""Videos in stages (arXiv 2312.03018, section 5.5): each has a prompt, and begins with the last frame of the one
before.

Stated: two stages of 8 frames make a video of 16; the second has the same text or another. Ours: any number of stages,
leaving out the frame that two stages share, and bringing colours back to those of the first image.

Shapes: n frames, H height, W width in pixels; pictures are (n, H, W, 3) from 0 to 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

REANCHOR = ("off", "next image", "every frame")
UNDER_NOISE = ("off", "without text", "always")  # stages that begin with their image in every frame, under the noise
NO_TEXT = '""'  # a line of its own: a stage without text
FLAT = 1e-4  # a fortieth of the smallest step of 8 bit


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Which stage makes which frames of a video, and with which text. Raises ValueError for what cannot be a video.

    >>> plan = StagePlan(prompts=("rising", "falling", "at rest"), frames=8, drop_doubled=True)
    >>> plan.total, [plan.first(stage) for stage in range(3)], plan.kept(0), plan.kept(1)
    (22, [0, 8, 15], 8, 7)
    """

    prompts: tuple[str, ...]
    """A text for each stage; an empty one leaves it to the image alone."""
    frames: int = 8
    """Frames that each stage makes."""
    drop_doubled: bool = False
    """Whether the first frame of every stage but the first is left out: it is the last one of the stage before."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError(f"stages: there is no prompt; write one per stage, {NO_TEXT} for a stage without text")
        least = 1 + self.doubled
        if self.frames < least:
            why = ", for the doubled one is dropped" if self.drop_doubled else ""
            raise ValueError(f"stages: frames is {self.frames}; a stage needs {least} or more{why}")

    @property
    def count(self) -> int:
        return len(self.prompts)

    @property
    def doubled(self) -> int:
        """Frames that a stage behind the first leaves out."""
        return int(self.drop_doubled)

    @property
    def total(self) -> int:
        """Frames of the video."""
        return self.first(self.count)

    def first(self, stage: int) -> int:
        """The place in the video of the first frame that is kept of a stage; both counted from 0."""
        return stage * self.frames - self.doubled * max(0, stage - 1)

    def kept(self, stage: int) -> int:
        """How many frames of a stage are in the video: its last ones."""
        return self.frames - (self.doubled if stage else 0)


def parse_stages(text: str) -> tuple[str, ...]:
    """Lines -> a prompt for each stage; a line that is only "" in double quotes is a stage without text.

    Empty lines at the end do not count. ValueError when there is no line, and for an empty line between others, which
    may be a forgotten prompt.

    >>> parse_stages('rising\\n""\\n')
    ('rising', '')
    """
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise ValueError(f"stages: there is no prompt; write one line per stage, {NO_TEXT} for a stage without text")
    if "" in lines:
        raise ValueError(
            f"stages: stage {lines.index('') + 1} of {len(lines)} has no prompt; write its line, {NO_TEXT} for a stage "
            "without text, or remove the empty line"
        )
    return tuple("" if line == NO_TEXT else line for line in lines)


def colours_of(picture: Tensor) -> Tensor:
    """(1, H, W, 3) -> (2, 3): mean and standard deviation of red, green and blue over its pixels.

    ValueError for more than one picture.
    """
    if len(picture) != 1:
        raise ValueError(f"stages: colours are those of one picture, {len(picture)} were given")
    return torch.stack([picture.mean((0, 1, 2)), picture.std((0, 1, 2), correction=0)])


def reanchored(pictures: Tensor, colours: Tensor) -> Tensor:
    """Every picture with the mean and deviation of each channel that `colours` has (`colours_of` of the first image):

        y = mean_c + (x - mean_x) std_c / std_x     per channel, over the pixels of one picture

    Ours: the paper does nothing about drift. A channel that is flat in x or in the first image is only moved to the
    mean. What leaves 0 to 1 is not cut off here. (n, H, W, 3) -> the same shape.
    """
    mean, deviation = pictures.mean((1, 2), keepdim=True), pictures.std((1, 2), correction=0, keepdim=True)
    flat = (deviation < FLAT) | (colours[1] < FLAT)
    scale = torch.where(flat, 1.0, colours[1] / deviation.clamp(min=FLAT))
    return colours[0] + (pictures - mean) * scale
