"""I3D, the network whose outputs FVD compares: Inception v1 with three-dimensional filters.

Carreira and Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", arXiv 1705.07750, figure
3; widths of the Inception modules: Szegedy et al., arXiv 1409.4842, table 1. Written from the papers, so that published
state dicts load (names as in i3d_pretrained_400.pt); the published TorchScript file (i3d_torchscript.pt) also works.

Shapes: n clips, 3 channels, f frames, h x w pixels; values from -1 to 1, h = w = 224.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loading import MetricError, check_file, fill, is_torchscript, open_network, run_torchscript

SIZE, CLASSES, SHORTEST = 224, 400, 10
OPTION = "--i3d"
EXPECTED = (
    "an I3D of Kinetics-400: i3d_torchscript.pt (of StyleGAN-V) or i3d_pretrained_400.pt (of VideoGPT), "
    "or the same weights as safetensors"
)
MODULES = {  # 1x1; 1x1, 3x3; 1x1, 3x3 (5x5 in the Inception paper); 1x1 after the pool
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOLS = {  # kernel and stride of the pooling before a layer
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}
PROTOCOLS = ("videogpt", "styleganv")
EPSILON = 1e-5  # of batch norm in the published code for i3d_pretrained_400.pt; TensorFlow's I3D has 1e-3


def same_padding(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad (.., f, h, w) with zeros for ceil(size / stride) windows, more at the end if odd: TensorFlow's "SAME"."""
    padding: list[int] = []
    for size, k, s in zip(reversed(x.shape[-3:]), reversed(kernel), reversed(stride), strict=True):
        missing = max((math.ceil(size / s) - 1) * s + k - size, 0)
        padding += [missing // 2, missing - missing // 2]
    return F.pad(x, padding)


def pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    return F.max_pool3d(same_padding(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(c_in, c_out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(c_out, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv3d.kernel_size, self.conv3d.stride
        return self.bn(self.conv3d(same_padding(x, kernel, stride))).relu()


class Mixed(nn.Module):
    """An Inception module with four parallel branches."""

    def __init__(self, c_in: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = Unit(c_in, widths[0])
        self.b1a, self.b1b = Unit(c_in, widths[1]), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(c_in, widths[3]), Unit(widths[3], widths[4], 3)
        self.b3b = Unit(c_in, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        pooled = pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class Logits(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Average over 2 frames and all pixels, then logits, then their mean over time."""
        pooled = F.avg_pool3d(x, (2, x.shape[-2], x.shape[-1]), 1)
        return self.conv3d(pooled).mean((2, 3, 4))


class I3D(nn.Module):
    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": Unit(3, 64, 7, 2),
            "Conv3d_2b_1x1": Unit(64, 64),
            "Conv3d_2c_3x3": Unit(64, 192, 3),
        }
        channels = 192
        for name, widths in MODULES.items():
            layers[name] = Mixed(channels, widths)
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.order = tuple(layers)
        self.logits = Logits(classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, f, 224, 224) in -1..1 -> logits (n, classes), for 10 or more frames."""
        for name in self.order:
            if name in POOLS:
                x = pool(x, *POOLS[name])
            x = self.get_submodule(name)(x)
        return self.logits(x)


def pixels(frames: Tensor, protocol: str) -> Tensor:
    """Bytes (f, 3, h, w) -> (3, f, 224, 224) in -1..1, bilinear.

    "videogpt": short side scaled to 224, then the middle square; "styleganv": stretched to 224 x 224.
    """
    x = frames.float() / 127.5 - 1
    if protocol == "styleganv":
        return F.interpolate(x, size=(SIZE, SIZE), mode="bilinear").transpose(0, 1)
    h, w = frames.shape[-2:]
    scale = SIZE / min(h, w)
    size = (SIZE, math.ceil(w * scale)) if h < w else (math.ceil(h * scale), SIZE)
    x = F.interpolate(x, size=size, mode="bilinear")
    top, left = (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
    return x[..., top : top + SIZE, left : left + SIZE].transpose(0, 1)


class VideoFeatures:
    """Features of clips for FVD: the logits of I3D, (n, 400).

    protocol: how frames are resized to 224 x 224, "videogpt" or "styleganv"; "" selects the one published with the kind
    of file. The choice changes FVD by about 10 %. With "styleganv" a TorchScript file gets bytes and resizes them
    itself, as its authors do; otherwise it gets the result of `pixels`.
    """

    def __init__(self, path: Path | None, protocol: str = "", device: str = "cpu") -> None:
        path = check_file(path, OPTION, EXPECTED)
        self.scripted, self.device = is_torchscript(path), device
        self.protocol = protocol or ("styleganv" if self.scripted else "videogpt")
        if self.protocol not in PROTOCOLS:
            raise MetricError(f"--fvd-protocol {protocol} is unknown; give one of {', '.join(PROTOCOLS)}")
        self.network, self.file = open_network(
            path, OPTION, device, lambda weights: fill(I3D(), weights, path, OPTION, "I3D of Kinetics-400")
        )

    @torch.no_grad()
    def __call__(self, clips: list[Tensor]) -> Tensor:
        """Bytes (f, 3, h, w) each -> (n, 400)."""
        if not self.scripted:
            return self.network(torch.stack([pixels(clip, self.protocol) for clip in clips]).to(self.device)).cpu()
        inputs = [self._scripted_input(clip) for clip in clips]
        rescale, label = self.protocol == "styleganv", f"{OPTION} {self.file.file}"
        return run_torchscript(
            self.network, inputs, label, "an I3D", rescale=rescale, resize=rescale, return_features=True
        )

    def _scripted_input(self, clip: Tensor) -> Tensor:
        x = clip.transpose(0, 1) if self.protocol == "styleganv" else pixels(clip, self.protocol)
        return x.unsqueeze(0).to(self.device)
