"""ART-V's masks, drawn: where the frame before is copied (figures 4, 9 and 11 of arXiv 2311.18834).

Shapes: f frames, k noise levels from noise to the finished frame, h, w of the latent; masks (f, k, h, w) in 0..1.
"""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from .plots import below, caption, contact_sheet, heat, line_chart, scale_bar
from .views import shown_columns

NOTE = (
    "1 copies the frame before, 0 takes what the network draws. mean: over the picture; contrast: standard deviation "
    "over it. In the paper both rise towards the finished frame, and moving parts stay dark."
)


def curves(masks: Tensor) -> dict[str, list[float]]:
    """Mean over the picture and contrast (standard deviation over it) at each level, means over the frames."""
    return {"mean": masks.mean((0, 2, 3)).tolist(), "contrast": masks.std((2, 3), correction=0).mean(0).tolist()}


def draw_masks(masks: Tensor, percents: Sequence[float], first: int = 1) -> Image.Image:
    """A row for each level, a column for each frame, and the curves. first: number of the first frame."""
    shown = shown_columns(len(masks))
    tiles = [[heat(masks[frame, level].numpy(), 1.0) for frame in shown] for level in range(len(percents))]
    rows = [f"{100 * percent:.0f} %" for percent in percents]
    names = ["frame", *(str(first + frame) for frame in shown)]
    sheet = contact_sheet(tiles, rows, names, title="ART-V's masks", text="rows: part of the schedule that is done")
    lines = {name: (list(percents), values) for name, values in curves(masks).items()}
    chart = line_chart(lines, title="Over the schedule", x="part of the schedule", y="mask", zero=True, height=320)
    means = {"": (list(range(first, first + len(masks))), masks.mean((1, 2, 3)).tolist())}
    frames = line_chart(means, title="Over the video", x="frame", y="mean", zero=True, whole=True, height=320)
    return below([sheet, scale_bar("mask", 1.0, width=sheet.width), chart, frames, caption(NOTE)])


def masks_text(masks: Tensor, percents: Sequence[float]) -> str:
    """A line for each level."""
    found = curves(masks)
    rows = zip(percents, found["mean"], found["contrast"], strict=True)
    lines = [f"{100 * percent:.0f} %: mean {mean:.4f}  contrast {contrast:.4f}" for percent, mean, contrast in rows]
    return "\n".join([f"{len(masks)} frames, part of the schedule that is done", *lines])
