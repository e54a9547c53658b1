"""First-frame fidelity: similarity of the first frame of a video to the image from which it was generated.

DreamVideo, arXiv 2312.03018, section 5 (FFF_SSIM). SSIM: Wang et al. 2004, with its Gaussian window of 11 pixels,
sigma 1.5, K1 = 0.01, K2 = 0.03, for each channel separately. Shapes: n pairs, RGB in 0..1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2  # for values in 0..1


def first_frame_ssim(first: Tensor, image: Tensor) -> Tensor:
    """SSIM of each pair: (n, 3, h, w) in 0..1 each -> (n,), 1 for equal images.

    It is averaged over channels and all pixels, with images reflected at their edges. ValueError for images of
    different sizes, or smaller than the window.
    """
    if first.shape != image.shape or first.ndim != 4 or min(first.shape[-2:]) < WINDOW:
        raise ValueError(
            f"SSIM: the images are {tuple(first.shape)} and {tuple(image.shape)}; both must be (n, 3, h, w) with h "
            f"and w of {WINDOW} or more"
        )
    x, y = first.float(), image.float()
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    shared = _blur(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * shared + C2) / (var_x.clamp(min=0) + var_y.clamp(min=0) + C2)
    return (light * structure).mean((1, 2, 3))


def _blur(x: Tensor) -> Tensor:
    """Gaussian mean around each pixel of (n, c, h, w)."""
    places = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    kernel = torch.exp(-(places**2) / (2 * SIGMA**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, WINDOW)
    margin = WINDOW // 2
    rows = F.conv2d(F.pad(x, (margin,) * 4, mode="reflect"), kernel, groups=x.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=x.shape[1])
