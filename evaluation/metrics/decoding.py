"""How well a decoder reconstructs frames: peak signal-to-noise ratio and flicker."""

from torch import Tensor


def psnr(y: Tensor, x: Tensor) -> Tensor:
    """Of images in -1..1, dB."""
    return -10 * ((y.clamp(-1, 1) - x) / 2).square().mean().log10()


def flicker(y: Tensor, x: Tensor) -> Tensor:
    """Mean |d y - d x|, d between a frame and the next: change over time that is not in the original. In -1..1."""
    return (y.clamp(-1, 1).diff(dim=0) - x.diff(dim=0)).abs().mean()
