"""C3D, the classifier behind the Inception Score of videos: eight 3 x 3 x 3 convolutions and three linear layers.

Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", arXiv 1412.0767, figure 3; trained on
Sports-1M and fine-tuned on UCF-101, as in papers since TGAN (arXiv 1611.06624). Written from the paper, so that state
dicts with its layer names load; the common TorchScript file (c3d_ucf101.pt) also works.

Shapes: n clips, 3 channels, 16 frames, 112 x 112 pixels.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loading import TORCHSCRIPT, MetricError, check_file, fill, open_network, run_torchscript

FRAMES, SIZE, CLASSES = 16, 112, 101
OPTION = "--c3d"
EXPECTED = "a C3D fine-tuned on UCF-101: c3d_ucf101.pt (of StyleGAN-V), or a state dict with layers conv1a to fc8"
CONVOLUTIONS = {"1a": 64, "2a": 128, "3a": 256, "3b": 256, "4a": 512, "4b": 512, "5a": 512, "5b": 512}
POOLED = ("1a", "2a", "3b", "4b", "5b")
MEAN = (90.25, 97.66, 101.41)  # of the training videos, blue, green, red, 0..255


class C3D(nn.Module):
    """narrow: divides the widths, for tests."""

    def __init__(self, classes: int = CLASSES, *, hidden: int = 4096, narrow: int = 1) -> None:
        super().__init__()
        channels = 3
        for name, width in CONVOLUTIONS.items():
            self.add_module(f"conv{name}", nn.Conv3d(channels, width // narrow, 3, padding=1))
            channels = width // narrow
        self.fc6 = nn.Linear(channels * 4 * 4, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 16, 112, 112), channels blue, green, red, minus their mean -> logits (n, classes)."""
        for name in CONVOLUTIONS:
            x = self.get_submodule(f"conv{name}")(x).relu()
            if name in POOLED:  # the last window of an odd size is smaller, as in Caffe
                x = F.max_pool3d(x, (1, 2, 2) if name == "1a" else 2, ceil_mode=True)
        hidden = self.fc7(self.fc6(x.flatten(1)).relu()).relu()
        return self.fc8(hidden)


def pixels(frames: Tensor) -> Tensor:
    """Bytes (16, 3, h, w), RGB -> (3, 16, 112, 112), BGR, 0..255 minus the mean; stretched, bilinear.

    Corners are aligned, as in TGAN's code. TGAN's mean is per pixel, ours is per channel.
    """
    x = F.interpolate(frames.float(), size=(SIZE, SIZE), mode="bilinear", align_corners=True).flip(1)
    return (x - x.new_tensor(MEAN).view(1, 3, 1, 1)).transpose(0, 1)


class VideoClasses:
    """Probabilities of the classes of UCF-101, (n, 101)."""

    def __init__(self, path: Path | None, device: str = "cpu") -> None:
        path = check_file(path, OPTION, EXPECTED)

        def build(tensors: dict[str, Tensor]) -> nn.Module:
            weights = _rename_layers(tensors)
            classes = len(weights["fc8.bias"]) if "fc8.bias" in weights else CLASSES
            return fill(C3D(classes), weights, path, OPTION, "C3D")

        self.network, self.file = open_network(path, OPTION, device, build)
        self.scripted, self.device = self.file.layout == TORCHSCRIPT, device

    @torch.no_grad()
    def __call__(self, clips: list[Tensor]) -> Tensor:
        """Bytes (16, 3, h, w) each -> (n, classes); each row adds up to 1."""
        if not self.scripted:
            return self.network(torch.stack([pixels(clip) for clip in clips]).to(self.device)).softmax(1).cpu()
        # bytes, as in StyleGAN-V: the file scales and classifies them itself
        inputs = [clip.transpose(0, 1).unsqueeze(0).to(self.device) for clip in clips]
        return self._check(run_torchscript(self.network, inputs, f"{OPTION} {self.file.file}", "a C3D"))

    def _check(self, rows: Tensor) -> Tensor:
        if rows.ndim != 2 or (rows < 0).any() or ((rows.sum(1) - 1).abs() > 1e-3).any():
            raise MetricError(f"{OPTION} {self.file.file} does not return class probabilities; give {EXPECTED}")
        return rows


def _rename_layers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the first two layers, which ports of C3D call conv1 and conv2."""
    for old, new in (("conv1.", "conv1a."), ("conv2.", "conv2a.")):
        weights = {new + name[len(old) :] if name.startswith(old) else name: w for name, w in weights.items()}
    return weights
