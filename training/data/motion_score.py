"""How much a clip moves: ART-V keeps clips with a motion score in [1, 20] (arXiv 2311.18834, section 4).

The paper points to a public script without naming method, size or distance of the frames, and the number means nothing
without them: RECONSTRUCTED, as options whose values stand in the list. Here the score is the mean length of the optical
flow, in pixels a frame of squares `width` pixels wide, over all pixels and pairs of frames `stride` apart.

Flow is OpenCV's: DIS (arXiv 1603.03590), preset "fast", or Farneback's. Measured on a textured square of 320 pixels
that is moved as a whole: both are right to 10 % from 1 to 10 pixels a frame; DIS gives 15 for 20, and 7 to 8 for 40 to
100, so that what is too fast would pass for calm. The same holds for a cut. Therefore (ours) the `residual` counts,
too: what is left of a picture after it is moved along the flow. Where the flow is right it is small, after a cut it is
large.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..plans.errors import ConfigError

METHODS = ("dis", "farneback")


@dataclass(frozen=True, kw_only=True)
class MotionFilter:
    """Which clips are kept. ConfigError for values that keep nothing or mean nothing."""

    low: float = 1.0  # pixels a frame at `width`
    high: float = 20.0
    residual: float = 5.0  # of the worst pair, mean of |difference| of greys in 0..255; 0: any
    method: str = "dis"
    width: int = 320  # pixels of the square the flow is measured on
    stride: int = 1  # frames between the two of a pair

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"--method {self.method}: use one of {', '.join(METHODS)}")
        if not 0 <= self.low <= self.high:
            raise ConfigError(f"--low {self.low:g} --high {self.high:g}: need 0 <= low <= high, in pixels a frame")
        if self.width < 32 or self.stride < 1:
            raise ConfigError(f"--width {self.width} --stride {self.stride}: at least 32 pixels and 1 frame")

    def keeps(self, scores: dict[str, float]) -> bool:
        """scores: those of `Motion`."""
        known = not self.residual or scores["residual"] <= self.residual
        return known and self.low <= scores["motion"] <= self.high


class Motion:
    """Scores of clips. ConfigError when OpenCV is not installed."""

    def __init__(self, chosen: MotionFilter) -> None:
        self.chosen, self.cv2 = chosen, _opencv()
        y, x = np.mgrid[0 : chosen.width, 0 : chosen.width].astype(np.float32)
        self._places = x, y
        self._dis: Any = self.cv2.DISOpticalFlow_create(self.cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def __call__(self, frames: Tensor) -> dict[str, float]:
        """frames: (f, 3, h, w) in 0..1 -> motion (pixels a frame) and residual (0..255, of the worst pair).

        A clip that is too short for a pair does not move.
        """
        greys = self.greys(frames)
        found = [self.pair(a, b) for a, b in zip(greys, greys[self.chosen.stride :], strict=False)]
        if not found:
            return {"motion": 0.0, "residual": 0.0}
        lengths, residuals = zip(*found, strict=True)
        return {"motion": float(np.mean(lengths)) / self.chosen.stride, "residual": float(max(residuals))}

    def greys(self, frames: Tensor) -> list[np.ndarray]:
        """Frames as bytes at the size of the measurement."""
        size = (self.chosen.width, self.chosen.width)
        scaled = F.interpolate(frames.float(), size=size, mode="bilinear", antialias=True)
        weights = scaled.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601
        return list(((scaled * weights).sum(1) * 255).round().clamp(0, 255).byte().cpu().numpy())

    def pair(self, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        """Mean length of the flow from a to b, and the mean of |a - b moved back along it|."""
        flow = self.flow(a, b)
        x, y = self._places
        edge = self.cv2.BORDER_REPLICATE
        back = self.cv2.remap(b, x + flow[..., 0], y + flow[..., 1], self.cv2.INTER_LINEAR, borderMode=edge)
        left = np.abs(back.astype(np.int16) - a.astype(np.int16)).mean()
        return float(np.hypot(flow[..., 0], flow[..., 1]).mean()), float(left)

    def flow(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(h, w) bytes -> (h, w, 2), in pixels: a[y, x] is found at b[y + flow[1], x + flow[0]]."""
        if self.chosen.method == "dis":
            return self._dis.calc(a, b, None)
        start: Any = None
        return self.cv2.calcOpticalFlowFarneback(a, b, start, 0.5, 3, 15, 3, 5, 1.2, 0)  # OpenCV's own example values


def _opencv() -> ModuleType:
    try:
        import cv2  # pyright: ignore[reportMissingImports]  # an extra
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the motion score needs OpenCV; install it with: pip install opencv-python-headless (the extra `curate`)"
        ) from error
    return cv2
