"""Drawings of ART-V's masks: where the previous frame is copied (figures 4, 9 and 11 of arXiv 2311.18834).

Shapes: f frames, k noise levels from pure noise to the finished frame, h, w of the latent; masks (f, k, h, w) in 0..1.
"""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from .plots import below, caption, contact_sheet, heat, line_chart, scale_bar
from .views import frame_columns

NOTE = (
    "1 copies the previous frame, 0 uses the network's prediction. mean and contrast (standard deviation) are over the "
    "pixels. In the paper both rise towards the finished frame, and moving parts stay dark."
)


def curves(masks: Tensor) -> dict[str, list[float]]:
    """Mean and contrast (standard deviation over pixels) at each level, averaged over the frames."""
    return {"mean": masks.mean((0, 2, 3)).tolist(), "contrast": masks.std((2, 3), correction=0).mean(0).tolist()}


def draw_masks(masks: Tensor, percents: Sequence[float], first: int = 1) -> Image.Image:
    """One row per level, one column per frame, and the curves. first: number of the first frame."""
    columns = frame_columns(len(masks))
    tiles = [[heat(masks[frame, level].numpy(), 1.0) for frame in columns] for level in range(len(percents))]
    rows = [f"{100 * percent:.0f} %" for percent in percents]
    names = ["frame", *(str(first + frame) for frame in columns)]
    sheet = contact_sheet(tiles, rows, names, title="ART-V's masks", text="rows: completed part of the schedule")
    lines = {name: (list(percents), values) for name, values in curves(masks).items()}
    chart = line_chart(lines, title="Over the schedule", x="part of the schedule", y="mask", zero=True, height=320)
    means = {"": (list(range(first, first + len(masks))), masks.mean((1, 2, 3)).tolist())}
    frames = line_chart(means, title="Over the video", x="frame", y="mean", zero=True, whole=True, height=320)
    return below([sheet, scale_bar("mask", 1.0, width=sheet.width), chart, frames, caption(NOTE)])


def masks_text(masks: Tensor, percents: Sequence[float]) -> str:
    """One line per level."""
    series = curves(masks)
    rows = zip(percents, series["mean"], series["contrast"], strict=True)
    lines = [f"{100 * percent:.0f} %: mean {mean:.4f}  contrast {contrast:.4f}" for percent, mean, contrast in rows]
    return "\n".join([f"{len(masks)} frames, completed part of the schedule", *lines])
