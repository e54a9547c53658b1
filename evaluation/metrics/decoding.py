"""Quality of decoded frames: peak signal-to-noise ratio and flicker."""

from torch import Tensor


def psnr(y: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images in -1..1, in dB."""
    return -10 * ((y.clamp(-1, 1) - x) / 2).square().mean().log10()


def flicker(y: Tensor, x: Tensor) -> Tensor:
    """Mean |d y - d x|, d between adjacent frames: change over time that is not in the original. Frames in -1..1."""
    return (y.clamp(-1, 1).diff(dim=0) - x.diff(dim=0)).abs().mean()
