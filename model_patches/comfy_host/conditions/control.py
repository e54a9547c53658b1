"""ControlNets on some frames of a clip, through ComfyUI's base class of ControlNets.

ComfyUI applies a batch of hints to a batch of frames, one to each, and cannot exclude frames: masks of conditions are
per frame, but every condition runs the ControlNet on all frames. Therefore `FrameControl` replaces the ControlNet in a
condition, calls it, and weights its output for each frame.

Shapes: f frames of a clip; the U-Net's batch is (chunks * clips * f, c, h, w).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.windows import WindowedControl, places_of, with_hints
from ..dreamvideo.retention import RetentionControl

Conditioning = list[list[Any]]


def parse_frames(text: str, frames: int, subject: str = "ControlNet frames") -> dict[int, float]:
    """'0, -1' -> {0: 1.0, frames - 1: 1.0}. Each entry is a frame, counted from 0, or from the end if negative; a range
    a:b, which excludes b; or "all"; optionally followed by =strength. ValueError names an invalid entry.

    subject: begins the messages.
    """
    strengths: dict[int, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        frame, _, strength = entry.partition("=")
        try:
            factor = float(strength) if strength else 1.0
            if not math.isfinite(factor):
                raise ValueError(strength)
            strengths |= dict.fromkeys(_frame_range(frame.strip(), frames), factor)
        except ValueError as error:
            raise ValueError(
                f"{subject}: {entry[:100]!r} is not a frame of a clip of {frames}; write frames 0 to {frames - 1}, "
                "-1 for the last, ranges like 4:8, strengths like -1=0.5, separated by commas"
            ) from error
    if not strengths:
        raise ValueError(f'{subject}: no frame is given; write for example "0, -1" for the first and the last')
    return strengths


def _frame_range(text: str, frames: int) -> range:
    if text == "all":
        return range(frames)
    if ":" in text:
        first, last = (
            int(part) if part else default for part, default in zip(text.split(":"), (0, frames), strict=True)
        )
        selection = range(frames)[first:last]
        if not selection:
            raise ValueError(text)
        return selection
    frame = int(text)
    if not -frames <= frame < frames:
        raise ValueError(text)
    return range(frame % frames, frame % frames + 1)


def limit_to_frames(
    conditions: tuple[Conditioning, ...], strengths: Mapping[int, float], frames: int
) -> tuple[Conditioning, ...]:
    """Copies of `conditions` whose last ControlNet acts only on the frames in `strengths` (frame -> strength).

    A ControlNet that several conditions share remains shared, so that they run in one batch. ValueError when no
    condition has a ControlNet, or when it has neither 1 image, nor one per selected frame, nor one per frame.
    """
    controls: dict[int, FrameControl] = {}

    def with_control(options: dict[str, Any]) -> dict[str, Any]:
        control = options.get("control")
        if control is None:
            return options
        if id(control) not in controls:
            controls[id(control)] = FrameControl.around(control, strengths, frames)
        return options | {"control": controls[id(control)]}

    result = tuple([[tokens, with_control(options)] for tokens, options in condition] for condition in conditions)
    if not controls:
        raise ValueError(
            "ControlNet frames: these conditions have no ControlNet; connect the node after Apply ControlNet"
        )
    return result


def hints_by_frame(hint: Tensor, strengths: Mapping[int, float], frames: int) -> Tensor:
    """The hint of every frame: (1 or f, c, h, w). With one image per selected frame, each is assigned to its frame."""
    count, places = len(hint), sorted(strengths)
    if count in (1, frames):
        return hint
    if count != len(places):
        raise ValueError(
            f"ControlNet frames: the ControlNet has {count} images for {len(places)} frames of a clip of {frames}; "
            f"connect 1, {len(places)} or {frames} images"
        )
    index = torch.zeros(frames, dtype=torch.long)  # frames without an image get the first one, with weight 0
    index[places] = torch.arange(count)
    return hint[index]


class FrameControl(WindowedControl):
    """A ControlNet whose output is weighted per frame. ControlNets applied before it are not affected."""

    def __init__(self, inner: Any, weights: Tensor) -> None:
        super().__init__(inner)
        self.weights = weights

    @classmethod
    def around(cls, control: Any, strengths: Mapping[int, float], frames: int) -> "FrameControl":
        if isinstance(control, RetentionControl) and control.branch.config.inject == "up_blocks":
            raise ValueError(
                "ControlNet frames: this retention branch adds to the outputs of the up blocks, which cannot be "
                "limited to frames; use a branch that adds to the skips, or remove the node"
            )
        weights = torch.zeros(frames)
        weights[list(strengths)] = torch.tensor(list(strengths.values()))
        wrapper = cls(with_hints(control, lambda images: hints_by_frame(images, strengths, frames)), weights)
        wrapper.set_previous_controlnet(control.previous_controlnet)
        return wrapper

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, transformer_options: Any) -> Any:
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        places = places_of(transformer_options)
        weights = self._weights_of(len(x_noisy), places)
        if not weights.any():
            return previous
        control = self.of_window(places, t)
        output = control.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if output is None:  # outside its part of the schedule
            return previous
        weighted = {
            key: [x if x is None else x * weights.view(-1, *[1] * (x.ndim - 1)).to(x) for x in outputs]
            for key, outputs in output.items()
        }
        return self.control_merge(weighted, previous, None)

    def _weights_of(self, rows: int, places: Sequence[int] | None) -> Tensor:
        """The weight of every row of the batch. In a context window, the rows are the frames of the window."""
        weights = self.weights if places is None else self.weights[[place % len(self.weights) for place in places]]
        if rows % len(weights):
            raise ValueError(
                f"ControlNet frames: frames is {len(self.weights)}, which does not divide this batch of {rows} "
                "images; set it to the number of frames of one clip"
            )
        return weights.repeat(rows // len(weights))

    def cut(self, select: Callable[[Tensor], Tensor]) -> "FrameControl":
        """A copy with select(rows) of the weights and of the hints."""
        clone = FrameControl(with_hints(self.inner, select), select(self.weights))
        self.copy_to(clone)
        return clone

    def _around(self, inner: Any) -> Any:
        clone = FrameControl(inner, self.weights)
        self.copy_to(clone)
        return clone
