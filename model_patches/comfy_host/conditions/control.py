"""ControlNets on a few frames of a clip, through ComfyUI's own base class of ControlNets.

ComfyUI gives a batch of hints to a batch of frames, one each, and has no way to leave frames out: masks of conditions
are per frame, but every condition runs the ControlNet on all frames and then also the motion model's other frames. So
`FrameControl` stands in a condition where the ControlNet was, calls it, and weights what it adds to each frame.

Shapes: f frames of a clip; the U-Net's batch is (chunks * clips * f, c, h, w).
"""

from collections.abc import Mapping
from typing import Any

import comfy.controlnet
import torch
from torch import Tensor

from ..dreamvideo.retention import RetentionControl

ControlBase: Any = comfy.controlnet.ControlBase
Conditioning = list[list[Any]]


def parse_frames(text: str, frames: int) -> dict[int, float]:
    """'0, -1' -> {0: 1.0, frames - 1: 1.0}. Entries: a frame, counted from 0, or from the end when negative; a range
    a:b without b; each perhaps with =strength; or "all". ValueError names an entry that is none of these or no frame.
    """
    chosen: dict[int, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        place, _, strength = entry.partition("=")
        try:
            factor = float(strength) if strength else 1.0
            chosen |= dict.fromkeys(_places(place.strip(), frames), factor)
        except ValueError as error:
            raise ValueError(
                f"ControlNet frames: {entry!r} is no frame of a clip of {frames}; write frames from 0 to {frames - 1}, "
                "-1 for the last, ranges like 4:8, strengths like -1=0.5, separated by commas"
            ) from error
    if not chosen:
        raise ValueError('ControlNet frames: no frame is named; write for example "0, -1" for the first and the last')
    return chosen


def _places(text: str, frames: int) -> range:
    if text == "all":
        return range(frames)
    if ":" in text:
        first, last = (
            int(part) if part else default for part, default in zip(text.split(":"), (0, frames), strict=True)
        )
        found = range(frames)[first:last]
        if not found:
            raise ValueError(text)
        return found
    place = int(text)
    if not -frames <= place < frames:
        raise ValueError(text)
    return range(place % frames, place % frames + 1)


def limit_to_frames(
    conditions: tuple[Conditioning, ...], chosen: Mapping[int, float], frames: int
) -> tuple[Conditioning, ...]:
    """Copies of `conditions` whose last applied ControlNet acts on the chosen frames only, with their strengths.

    A ControlNet that several conditions share is still shared, so that they run in one batch. ValueError when no
    condition has a ControlNet, or its images are neither 1, nor one per chosen frame, nor one per frame.
    """
    limited: dict[int, FrameControl] = {}

    def changed(options: dict[str, Any]) -> dict[str, Any]:
        control = options.get("control")
        if control is None:
            return options
        if id(control) not in limited:
            limited[id(control)] = FrameControl.around(control, chosen, frames)
        return options | {"control": limited[id(control)]}

    result = tuple([[words, changed(options)] for words, options in condition] for condition in conditions)
    if not limited:
        raise ValueError("ControlNet frames: these conditions have no ControlNet; put the node behind Apply ControlNet")
    return result


def hints_by_frame(hint: Tensor, chosen: Mapping[int, float], frames: int) -> Tensor:
    """The hint of every frame: (1 or f, c, h, w). One image per chosen frame is put where it belongs."""
    count, places = len(hint), sorted(chosen)
    if count in (1, frames):
        return hint
    if count != len(places):
        raise ValueError(
            f"ControlNet frames: the ControlNet has {count} images for {len(places)} frames of a clip of {frames}; "
            f"give 1, {len(places)} or {frames}"
        )
    index = torch.zeros(frames, dtype=torch.long)  # frames without an image get the first; its weight there is 0
    index[places] = torch.arange(count)
    return hint[index]


class FrameControl(ControlBase):
    """A ControlNet whose output is weighted per frame. ControlNets applied before it are not touched."""

    def __init__(self, inner: Any, weights: Tensor, hint: Tensor) -> None:
        super().__init__()
        self.inner, self.weights, self.hint = inner, weights, hint

    @classmethod
    def around(cls, control: Any, chosen: Mapping[int, float], frames: int) -> "FrameControl":
        if isinstance(control, RetentionControl) and control.branch.config.inject == "up_blocks":
            raise ValueError(
                "ControlNet frames: this retention branch adds to the ends of the up blocks, which cannot be limited "
                "to frames; use a branch that adds to the skips, or remove the node"
            )
        hint = hints_by_frame(control.cond_hint_original, chosen, frames)
        inner = control.copy().set_cond_hint(
            hint, control.strength, control.timestep_percent_range, control.vae, control.extra_concat_orig
        )
        weights = torch.zeros(frames)
        weights[list(chosen)] = torch.tensor(list(chosen.values()))
        found = cls(inner, weights, hint)
        found.set_previous_controlnet(control.previous_controlnet)
        return found

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, transformer_options: Any) -> Any:
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        weights = self._weights_of(x_noisy, (transformer_options or {}).get("context_window"))
        if not weights.any():
            return before
        added = self.inner.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if added is None:  # outside of its part of the schedule
            return before
        weighted = {
            key: [x if x is None else x * weights.view(-1, *[1] * (x.ndim - 1)).to(x) for x in outputs]
            for key, outputs in added.items()
        }
        return self.control_merge(weighted, before, None)

    def _weights_of(self, x: Tensor, window: Any) -> Tensor:
        """The weight of every row of the batch. In a context window the rows are the window's frames."""
        weights = self.weights
        if window is not None:
            anchor = getattr(window, "causal_anchor_index", None)
            places = [*([anchor] if anchor is not None and anchor >= 0 else []), *window.index_list]
            weights = weights[places]
            if len(self.hint) > 1:
                self.inner.cond_hint_original, self.inner.cond_hint = self.hint[places], None
        if len(x) % len(weights):
            raise ValueError(
                f"ControlNet frames: frames is {len(self.weights)}, which does not divide this batch of {len(x)} "
                "images; set it to the frames of one clip"
            )
        return weights.repeat(len(x) // len(weights))

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        super().pre_run(model, percent_to_timestep_function)
        self.inner.pre_run(model, percent_to_timestep_function)

    def cleanup(self) -> None:
        super().cleanup()
        self.inner.cleanup()
        self.inner.cond_hint_original = self.hint

    def copy(self) -> "FrameControl":
        found = FrameControl(self.inner.copy(), self.weights, self.hint)
        self.copy_to(found)
        return found

    def get_models(self) -> list[Any]:
        return super().get_models() + self.inner.get_models()

    def get_extra_hooks(self) -> list[Any]:
        return super().get_extra_hooks() + self.inner.get_extra_hooks()

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        return super().inference_memory_requirements(dtype) + self.inner.inference_memory_requirements(dtype)

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> "FrameControl":
        found = FrameControl(self.inner.deepclone_multigpu(load_device), self.weights, self.hint)
        self.copy_to(found)
        if autoregister:
            self.multigpu_clones[load_device] = found
        return found
