"""How much a clip moves: ART-V keeps clips with a motion score in [1, 20] (arXiv 2311.18834, section 4).

The paper refers to a public script without naming the method, the frame size or the frame distance, and the number is
meaningless without them: RECONSTRUCTED, with these settings as options whose values are stored in the list. The score
here is the mean length of the optical flow, in pixels per frame on squares `width` pixels wide, averaged over all
pixels and over all pairs of frames that are `stride` apart.

The flow comes from OpenCV: DIS (arXiv 1603.03590) with the preset "fast", or Farneback's method. Measured on a textured
square of 320 pixels that moves as a whole: both are accurate to 10 % from 1 to 10 pixels per frame. For 20 pixels per
frame DIS returns 15, and for 40 to 100 it returns 7 to 8, so a clip that moves too fast would pass as a slow one. The
same happens at a cut. Therefore (our addition) the `residual` is checked as well: the difference that remains between
two frames after one is warped along the flow. It is small where the flow is right, and large at a cut.
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
    """Which clips are kept. Raises ConfigError for values that are out of range."""

    low: float = 1.0  # pixels per frame at `width`
    high: float = 20.0
    residual: float = 5.0  # limit for the worst pair: mean |difference| of grey levels in 0..255; 0 means no limit
    method: str = "dis"
    width: int = 320  # pixels of the square the flow is measured on
    stride: int = 1  # frames between the two of a pair

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"--method {self.method}: use one of {', '.join(METHODS)}")
        if not 0 <= self.low <= self.high:
            raise ConfigError(f"--low {self.low:g} --high {self.high:g}: need 0 <= low <= high, in pixels per frame")
        if self.width < 32 or self.stride < 1:
            raise ConfigError(f"--width {self.width} --stride {self.stride}: need at least 32 pixels and 1 frame")

    def keeps(self, scores: dict[str, float]) -> bool:
        """Whether a clip with these scores (from `Motion`) is kept."""
        reliable = not self.residual or scores["residual"] <= self.residual
        return reliable and self.low <= scores["motion"] <= self.high


class Motion:
    """Computes the motion score of clips. Raises ConfigError when OpenCV is not installed."""

    def __init__(self, settings: MotionFilter) -> None:
        self.settings, self.cv2 = settings, _opencv()
        y, x = np.mgrid[0 : settings.width, 0 : settings.width].astype(np.float32)
        self._places = x, y
        self._dis: Any = self.cv2.DISOpticalFlow_create(self.cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def __call__(self, frames: Tensor) -> dict[str, float]:
        """frames: (f, 3, h, w) in 0..1 -> motion (pixels per frame) and residual (0..255, of the worst pair).

        A clip that is too short for one pair of frames has motion 0.
        """
        greys = self.greys(frames)
        pairs = [self.pair(a, b) for a, b in zip(greys, greys[self.settings.stride :], strict=False)]
        if not pairs:
            return {"motion": 0.0, "residual": 0.0}
        lengths, residuals = zip(*pairs, strict=True)
        return {"motion": float(np.mean(lengths)) / self.settings.stride, "residual": float(max(residuals))}

    def greys(self, frames: Tensor) -> list[np.ndarray]:
        """Frames as grey levels in bytes, at the size at which the flow is measured."""
        size = (self.settings.width, self.settings.width)
        resized = F.interpolate(frames.float(), size=size, mode="bilinear", antialias=True)
        weights = resized.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601
        return list(((resized * weights).sum(1) * 255).round().clamp(0, 255).byte().cpu().numpy())

    def pair(self, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        """Mean length of the flow from a to b, and the mean of |a - b warped back along the flow|."""
        flow = self.flow(a, b)
        x, y = self._places
        edge = self.cv2.BORDER_REPLICATE
        back = self.cv2.remap(b, x + flow[..., 0], y + flow[..., 1], self.cv2.INTER_LINEAR, borderMode=edge)
        residual = np.abs(back.astype(np.int16) - a.astype(np.int16)).mean()
        return float(np.hypot(flow[..., 0], flow[..., 1]).mean()), float(residual)

    def flow(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(h, w) bytes -> (h, w, 2), in pixels: the point a[y, x] has moved to b[y + flow[1], x + flow[0]]."""
        if self.settings.method == "dis":
            return self._dis.calc(a, b, None)
        start: Any = None
        return self.cv2.calcOpticalFlowFarneback(a, b, start, 0.5, 3, 15, 3, 5, 1.2, 0)  # values of OpenCV's example


def _opencv() -> ModuleType:
    try:
        import cv2  # pyright: ignore[reportMissingImports]  # an extra
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the motion score needs OpenCV; install it with: pip install opencv-python-headless (the extra `curate`)"
        ) from error
    return cv2
