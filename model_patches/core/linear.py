"""A linear layer that uses the faster of the two CPU libraries.

The choice depends on the processor and the shapes alone. A measurement at the first use would choose differently from
run to run where both take about the same time, and a resumed video would no longer be equal to the bit.
"""

import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGES = 16  # torch uses oneDNN for 1x1 convolutions of this many images, even on one thread
ROWS = 256  # of the input; with fewer, oneDNN spends more time on reordering the weights than it saves
WORK = 1 << 22  # multiplications; with fewer, the overhead is larger than the gain
WEIGHTS = 1 << 21  # in one product; with more, oneDNN is not faster
ONEDNN, TORCH = "oneDNN", "torch's choice"
AMD = ("AuthenticAMD", "HygonGenuine")  # makers of processors on which MKL is slow, as their processors report them


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b. x: (..., i), weight: (o, i), bias: (o,) or None -> (..., o).

    On a CPU and in float32, torch uses MKL for linear layers, whose kernels on AMD processors are half as fast as those
    of oneDNN, which torch uses for convolutions. There the rows are viewed as pixels of channels-last images, which
    copies no data, and W becomes a 1x1 convolution. On other processors this is torch's linear layer.
    """
    if not _faster_by_onednn(x, weight):
        return F.linear(x, weight, bias)
    images = x.reshape(IMAGES, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    rows = max(1, WEIGHTS // weight.shape[1])
    parts = weight.split(rows)
    biases = [None] * len(parts) if bias is None else bias.split(rows)
    products = [F.conv2d(images, w[:, :, None, None], b) for w, b in zip(parts, biases, strict=True)]
    return torch.cat([y.permute(0, 2, 3, 1) for y in products], dim=-1).reshape(*x.shape[:-1], -1)


def processor_maker(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The maker as the processor reports it, such as "GenuineIntel"; "" where the system does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux; Windows reports "AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD"
        return platform.processor().rpartition(", ")[2]
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def _kernels() -> str:
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return TORCH  # on a Mac, Apple's library is the fastest
    return ONEDNN if processor_maker() in AMD else TORCH


KERNELS = _kernels()
"""The library of large float32 products on this CPU. It is a constant, so that torch.compile does not trace it."""


def _faster_by_onednn(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or not torch.float32 == x.dtype == weight.dtype or KERNELS != ONEDNN:
        return False
    rows = x.numel() // x.shape[-1]
    return rows >= ROWS and rows % IMAGES == 0 and rows * weight.numel() >= WORK
