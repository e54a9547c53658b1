"""The part of a user's conditions that belongs to one clip of a long video. Nothing of the user's is written to.

What has one row for all, or one for each frame of a clip, is shared by all clips. What has more rows has one for each
frame of the video, and every clip gets its own: text and image tokens, pooled vectors, masks, hints of ControlNets.
IP-Adapters live in the MODEL; theirs read `ad_params` in the transformer options, as AnimateDiff-Evolved hands it out.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .control import FrameControl

Conditions = dict[str, list[dict[str, Any]]]  # by their role, as a guider holds them
ROWS = {"cross_attn", "pooled_output"}  # a row per frame in two dimensions, too; elsewhere that would be a picture


@dataclass(frozen=True)
class Part:
    """Frames `first` to `last` of a video, a clip of it."""

    first: int
    last: int

    @property
    def frames(self) -> int:
        return self.last - self.first

    def of(self, values: Tensor) -> Tensor:
        return values[self.first : self.last] if len(values) > self.frames else values

    def conditions(self, given: Conditions) -> Conditions:
        """Conditions of this part. ControlNets are copies, one for all the conditions that shared one."""
        copies: dict[int, Any] = {}
        return {role: [self._condition(c, copies) for c in conditions] for role, conditions in given.items()}

    def _condition(self, condition: dict[str, Any], copies: dict[int, Any]) -> dict[str, Any]:
        changed = {key: self.of(value) for key, value in condition.items() if _by_frame(key, value)}
        if condition.get("control") is not None:
            changed["control"] = self._control(condition["control"], copies)
        return condition | changed

    def _control(self, control: Any, copies: dict[int, Any]) -> Any:
        if id(control) not in copies:
            part = self._limited(control) if isinstance(control, FrameControl) else self._plain(control)
            if control.previous_controlnet is not None:
                part.set_previous_controlnet(self._control(control.previous_controlnet, copies))
            copies[id(control)] = part
        return copies[id(control)]

    def _plain(self, control: Any) -> Any:
        part = control.copy()
        if isinstance(part.cond_hint_original, Tensor):
            part.cond_hint_original = self.of(part.cond_hint_original)
        part.extra_concat_orig = [self.of(extra) for extra in part.extra_concat_orig]
        return part

    def _limited(self, control: FrameControl) -> FrameControl:
        part = control.copy()
        part.weights, part.hint = self.of(part.weights), self.of(part.hint)
        part.inner.cond_hint_original = part.hint
        return part

    def model(self, model: Any) -> Any:
        """A clone of a MODEL whose IP-Adapters, if any, take the images of this part."""
        clone = model.clone()
        options = clone.model_options.setdefault("transformer_options", {})
        options["ad_params"] = {"sub_idxs": list(range(self.first, self.last)), "full_length": self.last}
        return clone

    def guider(self, guider: Any, conditions: Conditions) -> Any:
        """A guider like `guider` for this part."""
        found = copy.copy(guider)
        found.model_patcher = self.model(guider.model_patcher)
        found.model_options = found.model_patcher.model_options
        found.original_conds = self.conditions(conditions)
        return found


def check_rows(given: Conditions, frames: int, total: int) -> None:
    """ValueError when something is longer than a clip and shorter than the video."""
    for role, conditions in given.items():
        for condition in conditions:
            for name, values in _all_rows(condition):
                if frames < len(values) < total:
                    raise ValueError(
                        f"long video: the {role} condition has {len(values)} rows of {name} for a video of {total} "
                        f"frames; give one for all, {frames} that every clip shares, or at least {total}"
                    )


def _all_rows(condition: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    yield from ((key, value) for key, value in condition.items() if _by_frame(key, value))
    control = condition.get("control")
    while control is not None:
        hint = control.weights if isinstance(control, FrameControl) else control.cond_hint_original
        if isinstance(hint, Tensor):
            yield "ControlNet images", hint
        control = control.previous_controlnet


def _by_frame(key: str, value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim >= (2 if key in ROWS else 3)
