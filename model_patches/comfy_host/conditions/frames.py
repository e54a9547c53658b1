"""The part of a user's conditions for one clip of a long video. The user's conditions are not modified.

Tensors with one row for all frames, or one row for each frame of a clip, are shared by all clips. Tensors with more
rows have one row for each frame of the video, and every clip gets its own rows: text and image tokens, pooled vectors,
masks, hints of ControlNets. IP-Adapters are part of the MODEL; they read `ad_params` in the transformer options, which
AnimateDiff-Evolved introduced.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..base.windows import hints_of, with_hints
from .control import FrameControl

Conditions = dict[str, list[dict[str, Any]]]  # by role, as in a guider
ROWS = {
    "cross_attn",
    "pooled_output",
}  # these have rows per frame even with two dimensions; other such tensors are images


@dataclass(frozen=True)
class Part:
    """One clip of a video: frames `first` up to, but not including, `last`."""

    first: int
    last: int

    @property
    def frames(self) -> int:
        return self.last - self.first

    def of(self, values: Tensor) -> Tensor:
        return values[self.first : self.last] if len(values) > self.frames else values

    def conditions(self, by_role: Conditions) -> Conditions:
        """Conditions of this part. Each ControlNet is copied once, for all conditions that share it."""
        copies: dict[int, Any] = {}
        return {role: [self._condition(c, copies) for c in conditions] for role, conditions in by_role.items()}

    def _condition(self, condition: dict[str, Any], copies: dict[int, Any]) -> dict[str, Any]:
        updates = {key: self.of(value) for key, value in condition.items() if _by_frame(key, value)}
        if condition.get("control") is not None:
            updates["control"] = self._control(condition["control"], copies)
        return condition | updates

    def _control(self, control: Any, copies: dict[int, Any]) -> Any:
        if id(control) not in copies:
            part = control.cut(self.of) if isinstance(control, FrameControl) else with_hints(control, self.of)
            if control.previous_controlnet is not None:
                part.set_previous_controlnet(self._control(control.previous_controlnet, copies))
            copies[id(control)] = part
        return copies[id(control)]

    def model(self, model: Any) -> Any:
        """A clone of a MODEL whose IP-Adapters, if any, use the images of this part."""
        clone = model.clone()
        options = clone.model_options.setdefault("transformer_options", {})
        options["ad_params"] = {"sub_idxs": list(range(self.first, self.last)), "full_length": self.last}
        return clone

    def guider(self, guider: Any, conditions: Conditions) -> Any:
        """A copy of `guider` for this part."""
        clone = copy.copy(guider)
        clone.model_patcher = self.model(guider.model_patcher)
        clone.model_options = clone.model_patcher.model_options
        clone.original_conds = self.conditions(conditions)
        return clone


def check_rows(by_role: Conditions, frames: int, total: int) -> None:
    """ValueError when a tensor has more rows than a clip has frames, but fewer than the video."""
    for role, conditions in by_role.items():
        for condition in conditions:
            for name, values in _all_rows(condition):
                if frames < len(values) < total:
                    raise ValueError(
                        f"long video: the {role} condition has {len(values)} rows of {name} for a video of {total} "
                        f"frames; give 1 row for all frames, {frames} that every clip shares, or at least {total}"
                    )


def _all_rows(condition: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    yield from ((key, value) for key, value in condition.items() if _by_frame(key, value))
    yield from (("ControlNet images", hint) for hint in hints_of(condition.get("control")))


def _by_frame(key: str, value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim >= (2 if key in ROWS else 3)
