"""A linear layer by the faster of a processor's two libraries."""

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGES = 16  # torch hands 1x1 convolutions of so many images to oneDNN, also on one thread
ROWS = 256  # of the input: for fewer, oneDNN spends more on arranging the weights than it saves
WORK = 1 << 22  # multiplications: for fewer, the way there costs more
WEIGHTS = 1 << 21  # in one product: with more of them, oneDNN is no faster


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b. x: (..., i), weight: (o, i), bias: (o,) or None -> (..., o).

    In float32, torch takes MKL for it on a CPU, whose kernels for AMD's processors are half as fast as oneDNN's, which
    torch takes for convolutions. So rows become the pixels of images whose channels are last in memory, which moves no
    number, and W a 1x1 convolution.
    """
    if not _faster_by_onednn(x, weight):
        return F.linear(x, weight, bias)
    images = x.reshape(IMAGES, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    rows = max(1, WEIGHTS // weight.shape[1])
    parts = weight.split(rows)
    biases = [None] * len(parts) if bias is None else bias.split(rows)
    made = [F.conv2d(images, w[:, :, None, None], b) for w, b in zip(parts, biases, strict=True)]
    return torch.cat([y.permute(0, 2, 3, 1) for y in made], dim=-1).reshape(*x.shape[:-1], -1)


def _faster_by_onednn(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or not torch.float32 == x.dtype == weight.dtype:
        return False
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False  # a Mac's own library is the fastest there
    rows = x.numel() // x.shape[-1]
    return rows >= ROWS and rows % IMAGES == 0 and rows * weight.numel() >= WORK
