"""Videos in stages (arXiv 2312.03018, section 5.5): each stage has a prompt and starts with the last frame of the
previous stage.

Stated: two stages of 8 frames make a video of 16 frames; the second has the same text or another. Ours: any number of
stages, dropping the frame that two stages share, and resetting colours to those of the first image.

Shapes: n frames, H height, W width in pixels; pictures are (n, H, W, 3) from 0 to 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.prompt_lines import keyframes, numbered, quoted_lines

REANCHOR = ("off", "next image", "every frame")
UNDER_NOISE = ("off", "without text", "always")  # which stages start with their image in every frame, below the noise
NO_TEXT = '""'  # this line is a stage without text
FLAT = 1e-4  # a fortieth of one 8-bit step


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Frames and text of each stage of a video. Raises ValueError for a plan without frames or prompts.

    >>> plan = StagePlan(prompts=("rising", "falling", "at rest"), frames=8, drop_doubled=True)
    >>> plan.total, [plan.first(stage) for stage in range(3)], plan.kept(0), plan.kept(1)
    (22, [0, 8, 15], 8, 7)
    """

    prompts: tuple[str, ...]
    """The text of each stage; an empty text means that the stage follows its image alone."""
    frames: int = 8
    """Frames that each stage generates."""
    drop_doubled: bool = False
    """Whether to drop the first frame of each later stage, which equals the last frame of the previous stage."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError(f"stages: there is no prompt; write one per stage, {NO_TEXT} for a stage without text")
        least = 1 + self.doubled
        if self.frames < least:
            reason = ", because the doubled frame is dropped" if self.drop_doubled else ""
            raise ValueError(f"stages: frames is {self.frames}; a stage needs {least} or more{reason}")

    @property
    def count(self) -> int:
        return len(self.prompts)

    @property
    def doubled(self) -> int:
        """Frames that each stage after the first drops."""
        return int(self.drop_doubled)

    @property
    def total(self) -> int:
        """Frames of the video."""
        return self.first(self.count)

    def first(self, stage: int) -> int:
        """Index in the video of the first frame of a stage; both counted from 0."""
        return stage * self.frames - self.doubled * max(0, stage - 1)

    def kept(self, stage: int) -> int:
        """How many frames of a stage are in the video, always its last ones."""
        return self.frames - (self.doubled if stage else 0)


def parse_stages(text: str) -> tuple[str, ...]:
    """Lines -> a prompt for each stage; a line of only two double quotes ("") is a stage without text.

    Empty lines at the end are ignored. ValueError when there is no line, for an empty line between others, which may
    be a forgotten prompt, and for lines with numbers: a stage has none.

    >>> parse_stages('rising\\n""\\n')
    ('rising', '')
    """
    travel = keyframes(text) or _numbered_stages(text)
    if travel is not None:
        example = quoted_lines([prompt for _, prompt in travel])
        raise ValueError(
            "stages: these prompts have numbers, as in prompt travel or Prompt Schedule, but a stage has none; write "
            f"one prompt per stage, without numbers, quotes and commas:\n{example}"
        )
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise ValueError(f"stages: there is no prompt; write one line per stage, {NO_TEXT} for a stage without text")
    if "" in lines:
        raise ValueError(
            f"stages: stage {lines.index('') + 1} of {len(lines)} has no prompt; write one, or {NO_TEXT} for a stage "
            "without text, or remove the empty line"
        )
    return tuple("" if line == NO_TEXT else line for line in lines)


def _numbered_stages(text: str) -> list[tuple[str, str]] | None:
    """(number, prompt) of every line, if there are two or more and all of them have numbers."""
    lines = [numbered(line) for line in text.splitlines() if line.strip()]
    return lines if len(lines) > 1 and all(number and prompt for number, prompt in lines) else None


def colours_of(picture: Tensor) -> Tensor:
    """(1, H, W, 3) -> (2, 3): mean and standard deviation of red, green and blue over the pixels.

    ValueError for more than one picture.
    """
    if len(picture) != 1:
        raise ValueError(f"stages: the colours are those of one picture, but {len(picture)} were given; select one")
    return torch.stack([picture.mean((0, 1, 2)), picture.std((0, 1, 2), correction=0)])


def reanchored(pictures: Tensor, colours: Tensor) -> Tensor:
    """Give every picture the channel means and deviations in `colours` (`colours_of` of the first image):

        y = mean_c + (x - mean_x) std_c / std_x     per channel, over the pixels of one picture

    Ours: the paper does not treat colour drift. A channel that is constant in x or in the first image is only shifted
    to the mean. Values outside 0 to 1 are not clamped here. (n, H, W, 3) -> the same shape.
    """
    mean, deviation = pictures.mean((1, 2), keepdim=True), pictures.std((1, 2), correction=0, keepdim=True)
    flat = (deviation < FLAT) | (colours[1] < FLAT)
    scale = torch.where(flat, 1.0, colours[1] / deviation.clamp(min=FLAT))
    return colours[0] + (pictures - mean) * scale
