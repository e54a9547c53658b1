"""The frames of a clip in one call of the MODEL.

A call has the images of one or more conditions, one after the other, and of each condition all images of the run, or
only some: context windows of ComfyUI or of other packs call the MODEL with a part of the frames at a time. The rows of
one condition are therefore counted for every call; nothing is assumed about the batch of the run.
"""

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.temporal import check_frames

OURS = "stillmotion."


def check_run(batch: int, frames: int, longest: int | None, options: dict[str, Any]) -> None:
    """ValueError, before anything is loaded, unless a batch can consist of clips of `frames` frames.

    longest: frames for which the motion model knows positions. options: the guider's model options.
    """
    windows = options.get("context_handler")
    if windows is None:
        check_frames(batch, frames, None if _may_split(options) else longest)
        return
    check_frames(batch, frames)
    if frames != batch:
        raise ValueError(
            f"motion model: context windows slide over the whole batch of {batch} images, but frames is {frames}; set "
            f"frames to {batch} and sample one video at a time"
        )
    length = min(frames, getattr(windows, "context_length", 1))
    anchor = int(length < frames and getattr(windows, "causal_window_fix", False))
    if longest is not None and length + anchor > longest:
        raise ValueError(
            f"motion model: a context window has {length} frames{' and an anchor frame' * anchor}, but this motion "
            f"model knows positions for only {longest}; set the context length to at most {longest}"
            + (", and switch causal_window_fix off" if anchor else "")
        )


def rows_of_condition(batch: int, options: dict[str, Any], context: Tensor | None = None) -> int:
    """The number of images of one condition in a call of the MODEL.

    batch: images of the call. options: its transformer options, in which ComfyUI lists the conditions and stores a
    noise level for each image of a condition. context: the text of each image. A node that calls the MODEL for each
    condition or for stacked tiles may leave these as they were for the original batch.
    ValueError when the numbers contradict each other.
    """
    conditions = max(1, len(options.get("cond_or_uncond", ())))
    levels = options.get("sigmas")
    rows = levels.numel() if isinstance(levels, Tensor) else 0
    whole = rows <= 1 or rows * conditions == batch
    if whole or (rows == batch and _texts_differ(context, batch, conditions)):
        rows = batch // conditions
    if not rows or batch % rows:
        raise ValueError(
            f"motion model: another node calls this MODEL with {batch} images for {conditions} conditions of {rows} "
            "images, so it cannot be told which of them are the frames of one clip; remove that node, or use ComfyUI's "
            "Context Windows (Manual)"
        )
    return rows


def clip_length(frames: int, rows: int, batch: int | None, windowed: bool, longest: int | None = None) -> int:
    """Frames of a clip in a call with `rows` images of each condition.

    frames: as set by the user. batch: images of the whole run, None if unknown. windowed: ComfyUI's context windows.
    longest: frames for which the motion model knows positions. ValueError when the rows are not a clip.
    """
    length = rows if windowed or (rows < frames == batch) else frames
    if rows % length or (length == 1 < frames):
        raise ValueError(_not_a_clip(frames, rows, batch))
    if longest is not None and length > longest:
        raise ValueError(
            f"motion model: this MODEL is called with clips of {length} frames, but this motion model knows positions "
            f"for only {longest}; use at most {longest} frames, or context windows of that length"
        )
    return length


def _not_a_clip(frames: int, rows: int, batch: int | None) -> str:
    if batch is None:
        return (
            f"motion model: this MODEL is called outside a sampler with {rows} images of each condition, but a clip "
            f"has {frames} frames; set frames to {rows}"
        )
    if rows == 1:
        return (
            f"motion model: another node calls this MODEL with 1 image at a time, but a clip has {frames} frames, "
            "which must be seen together; let that node work on the whole batch, or remove it"
        )
    return (
        f"motion model: another node calls this MODEL with {rows} of the {batch} images at a time, but frames is "
        f"{frames}, so it cannot be told which of them are one clip; set frames to {batch}, and sample one video at a "
        "time"
    )


def _may_split(options: dict[str, Any]) -> bool:
    """Whether another pack may call the MODEL with a part of the batch: then lengths are checked for each call."""
    kinds = (WrappersMP.CALC_COND_BATCH, WrappersMP.PREDICT_NOISE, WrappersMP.APPLY_MODEL)
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    keys = {key for kind in kinds for key, functions in wrappers.get(kind, {}).items() if functions}
    return "model_function_wrapper" in options or any(not str(key).startswith(OURS) for key in keys)


def _texts_differ(context: Tensor | None, batch: int, conditions: int) -> bool:
    """Whether the text changes from condition to condition, if there were so many in this call, but not within one."""
    if context is None or len(context) != batch or batch % conditions or conditions == 1:
        return False
    parts = context.unflatten(0, (conditions, batch // conditions))
    return bool((parts == parts[:, :1]).all()) and not torch.equal(parts[0], parts[-1])
