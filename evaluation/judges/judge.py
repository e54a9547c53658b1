"""The image judge of the pocket's world: classifies colour, shape and background of a frame and locates the sprite.

It is trained only on rendered ground truth, never on generated images, so its verdict is independent of the models that
it judges. Shapes: n frames, h = w = 64; images are RGB in 0..1.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

LABELS = ("colour", "shape", "background")
FIRST_WORLD, FIRST_SIZES = "sprites", {"colour": 8, "shape": 8, "background": 6}  # of files whose header is silent


@dataclass(frozen=True)
class Verdict:
    logits: dict[str, Tensor]  # label -> (n, classes)
    mask: Tensor  # (n, 1, h/2, w/2) logits of the sprite's pixels

    def labels(self, name: str) -> Tensor:
        return self.logits[name].argmax(1)

    def centres(self) -> Tensor:
        """Centre of mass of the sprite's mask: (n, 2) as x, y in image widths; NaN if there is no sprite."""
        mask = self.mask.float().sigmoid().squeeze(1)
        mask = mask * (mask > 0.5)
        v = (torch.arange(mask.shape[-1]) + 0.5) / mask.shape[-1]
        weight = mask.sum((1, 2))
        centre = torch.stack([(mask.sum(1) * v).sum(1), (mask.sum(2) * v).sum(1)], 1) / weight.unsqueeze(1)
        return torch.where(weight.unsqueeze(1) > 4, centre, torch.full_like(centre, torch.nan))


def _layer(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.GroupNorm(8, c_out), nn.ReLU())


class Judge(nn.Module):
    """A small convolutional network; its mask weights the features for the shape and colour heads.

    sizes: number of classes of each label. world: name of the drawn world to which they belong.
    """

    def __init__(self, sizes: Mapping[str, int] = FIRST_SIZES, world: str = FIRST_WORLD) -> None:
        super().__init__()
        self.world, self.classes = world, {name: sizes[name] for name in LABELS}
        colours, shapes, backgrounds = self.classes.values()
        self.fine = nn.Sequential(_layer(3, 24, 1), _layer(24, 32, 2))
        self.middle = nn.Sequential(_layer(32, 48, 2), _layer(48, 48, 1))
        self.coarse = nn.Sequential(_layer(48, 96, 2), _layer(96, 96, 1))
        self.up = nn.Sequential(nn.Conv2d(96 + 48, 32, 1), nn.ReLU())
        self.mask = nn.Sequential(_layer(64, 32, 1), nn.Conv2d(32, 1, 1))
        self.sprite = nn.Sequential(nn.Linear(96 + 48, 128), nn.ReLU(), nn.Linear(128, colours + shapes))
        self.background = nn.Linear(96, backgrounds)
        self.sizes = (colours, shapes)

    def forward(self, images: Tensor) -> Verdict:
        sprite, scene, mask = self._pooled_features(images)
        colour, shape = self.sprite(sprite).split(self.sizes, 1)
        return Verdict({"colour": colour, "shape": shape, "background": self.background(scene)}, mask)

    def features(self, images: Tensor) -> Tensor:
        """The inputs of the heads, features of the sprite and of the whole image: (n, 240)."""
        sprite, scene, _ = self._pooled_features(images)
        return torch.cat([sprite, scene], 1)

    def _pooled_features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.fine(images * 2 - 1)  # h/2
        middle = self.middle(fine)  # h/4
        coarse = self.coarse(middle)  # h/8
        up = self.up(torch.cat([F.interpolate(coarse, scale_factor=2.0), middle], 1))
        mask = self.mask(torch.cat([F.interpolate(up, scale_factor=2.0), fine], 1))
        look = mask.sigmoid()
        return torch.cat([_masked_mean(coarse, look), _masked_mean(middle, look)], 1), coarse.mean((2, 3)), mask


def _masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    weight = F.adaptive_avg_pool2d(mask, (features.shape[-2], features.shape[-1]))
    return (features * weight).sum((2, 3)) / (weight.sum((2, 3)) + 1e-3)


def save_judge(judge: Judge, path: Path) -> None:
    header = {"format": "stillmotion/1", "system": "judge", "world": judge.world, "classes": json.dumps(judge.classes)}
    save_file({k: v.contiguous() for k, v in judge.state_dict().items()}, path, header)


def load_judge(path: Path) -> Judge:
    """The judge of a file, with the classes of the world that its header names."""
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    sizes = json.loads(header["classes"]) if "classes" in header else FIRST_SIZES
    judge = Judge(sizes, header.get("world", FIRST_WORLD))
    judge.load_state_dict(weights)
    return judge.eval().requires_grad_(False)
