"""Conditions in ComfyUI's context windows: every window gets the hints, masks and texts of its own frames.

ComfyUI cuts the tensors of a condition that have one row for each frame, but not the hints of a ControlNet, and a
ControlNet broadcasts its first hints to every window. So for a run with context windows, `for_windows` puts each
control with several hints in a `WindowedControl`, which calls a copy of it for each window, with the hints of that
window. A copy is set up through the public methods only, so it does not matter how a control stores its hints.

Tensors with another number of rows are repeated to the whole batch, as ComfyUI repeats them without windows: frame i
has row i % rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import comfy.controlnet
import torch
from torch import Tensor

ControlBase: Any = comfy.controlnet.ControlBase
Conditions = dict[str, list[dict[str, Any]] | None]
Places = tuple[int, ...]
ROWS = ("cross_attn", "pooled_output", "mask")  # of a condition; the first dimension of these is the frames


def places_of(options: dict[str, Any] | None) -> Places | None:
    """The frames of ComfyUI's context window, as in the rows of the batch; None outside windows."""
    window = (options or {}).get("context_window")
    if window is None:
        return None
    anchor = getattr(window, "causal_anchor_index", None)
    return (*([anchor] if anchor is not None and anchor >= 0 else []), *window.index_list)


def rows_at(values: Tensor, places: Sequence[int]) -> Tensor:
    """The rows of some frames; one row is for all of them, and fewer rows than frames are repeated."""
    return values if len(values) == 1 else values[[place % len(values) for place in places]]


def with_hints(control: Any, select: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a control, without those before it, whose hints and further images are select(images)."""
    hint = control.cond_hint_original
    if not isinstance(hint, Tensor):
        return control.copy()
    extra = [select(images) for images in control.extra_concat_orig]
    return control.copy().set_cond_hint(
        select(hint), control.strength, control.timestep_percent_range, control.vae, extra
    )


def hints_of(control: Any) -> Iterator[Tensor]:
    """The hints of a control and of those before it; of a control around another one, that one's."""
    while control is not None:
        hint = control.inner.cond_hint_original if isinstance(control, WindowedControl) else control.cond_hint_original
        if isinstance(hint, Tensor):
            yield hint
        control = control.previous_controlnet


def for_windows(conditions: Conditions, batch: int) -> Conditions:
    """Copies of the conditions of a run, for context windows over a batch of so many frames."""
    controls: dict[int, Any] = {}
    return {
        role: None if entries is None else [_condition(entry, batch, controls) for entry in entries]
        for role, entries in conditions.items()
    }


def frames_of_window(
    executor: Any, model: Any, conditions: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
) -> Any:
    """Wrap the conditions of a context window: tell IP-Adapters and Advanced-ControlNet which frames it has.

    They read `ad_params`, which AnimateDiff-Evolved introduced. A clip of a long video has such a part of its own.
    """
    options = model_options.get("transformer_options", {})
    places = places_of(options)
    if places is not None:
        total = options["context_window"].total_frames
        outer = options.get("ad_params", {})
        frames = outer.get("sub_idxs") or range(total)
        inner = {"sub_idxs": [frames[place] for place in places], "context_length": len(places)}
        params = {"full_length": total, **outer, **inner}
        model_options = model_options | {"transformer_options": options | {"ad_params": params}}
    return executor(model, conditions, x, timestep, model_options)


def _condition(condition: dict[str, Any], batch: int, controls: dict[int, Any]) -> dict[str, Any]:
    updates: dict[str, Any] = {}
    for name in ROWS:
        values = condition.get(name)
        if isinstance(values, Tensor) and values.ndim > 1 and len(values) not in (1, batch):
            updates[name] = rows_at(values, range(batch))
    if condition.get("control") is not None:
        updates["control"] = _windowed(condition["control"], controls)
    return condition | updates


def _windowed(control: Any, controls: dict[int, Any]) -> Any:
    """The control, or one that cuts its hints, after the controls before it. Shared controls stay shared."""
    if id(control) not in controls:
        before = control.previous_controlnet
        previous = None if before is None else _windowed(before, controls)
        hint = control.cond_hint_original
        # Advanced-ControlNet's controls cut their own hints: they have sub_idxs
        cuts = isinstance(control, WindowedControl) or hasattr(control, "sub_idxs")
        if not cuts and isinstance(hint, Tensor) and len(hint) > 1:
            controls[id(control)] = WindowedControl(control.copy()).set_previous_controlnet(previous)
        elif previous is not before:
            controls[id(control)] = control.copy().set_previous_controlnet(previous)
        else:
            controls[id(control)] = control
    return controls[id(control)]


class WindowedControl(ControlBase):
    """A control that is called with the hints of the frames of each context window."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.setup: tuple[Any, ...] = ()  # the arguments of pre_run
        self.level: float | None = None
        self.parts: dict[Places, Any] = {}
        self.earlier: dict[Places, Any] = {}  # of the noise level before, from which those still in use are taken

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, transformer_options: Any) -> Any:
        control = self.of_window(places_of(transformer_options), t).set_previous_controlnet(self.previous_controlnet)
        try:
            return control.get_control(x_noisy, t, cond, batched_number, transformer_options)
        finally:
            control.set_previous_controlnet(None)

    def of_window(self, places: Places | None, t: Tensor) -> Any:
        """The control of a window, made at its first call. Those of a window that is not used again are released."""
        if places is None or not isinstance(self.inner.cond_hint_original, Tensor):
            return self.inner
        if self.level != float(t[0]):
            self.level, self.earlier, self.parts = float(t[0]), self.parts, {}
        if places not in self.parts:
            self.parts[places] = self.earlier.pop(places, None) or self._cut(places)
        return self.parts[places]

    def _cut(self, places: Places) -> Any:
        control = with_hints(self.inner, lambda images: rows_at(images, places))
        if self.setup:
            control.pre_run(*self.setup)
        return control

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        super().pre_run(model, percent_to_timestep_function)
        self.setup = model, percent_to_timestep_function
        self.inner.pre_run(model, percent_to_timestep_function)

    def cleanup(self) -> None:
        super().cleanup()
        self.inner.cleanup()
        self.setup, self.level, self.parts, self.earlier = (), None, {}, {}

    def copy(self) -> Any:
        return self._around(self.inner.copy())

    def get_models(self) -> list[Any]:
        return super().get_models() + self.inner.get_models()

    def get_extra_hooks(self) -> list[Any]:
        return super().get_extra_hooks() + self.inner.get_extra_hooks()

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        return super().inference_memory_requirements(dtype) + self.inner.inference_memory_requirements(dtype)

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> Any:
        clone = self._around(self.inner.deepclone_multigpu(load_device))
        if autoregister:
            self.multigpu_clones[load_device] = clone
        return clone

    def _around(self, inner: Any) -> Any:
        """The same kind of control around another one."""
        clone = WindowedControl(inner)
        self.copy_to(clone)
        return clone
