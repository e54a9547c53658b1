"""The judge of the pocket's world: reads colour, shape and background of a frame and finds the sprite.

It is trained on rendered ground truth alone (never on anything generated), so its verdict on samples is independent of
the models it judges. Shapes: n frames, h = w = 64; images are RGB in 0..1.
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
    mask: Tensor  # (n, 1, h/2, w/2) logits: where the sprite is

    def labels(self, name: str) -> Tensor:
        return self.logits[name].argmax(1)

    def centres(self) -> Tensor:
        """Centre of mass of the sprite's mask: (n, 2) as x, y in image widths; NaN where there is no sprite."""
        mask = self.mask.float().sigmoid().squeeze(1)
        mask = mask * (mask > 0.5)
        v = (torch.arange(mask.shape[-1]) + 0.5) / mask.shape[-1]
        weight = mask.sum((1, 2))
        centre = torch.stack([(mask.sum(1) * v).sum(1), (mask.sum(2) * v).sum(1)], 1) / weight.unsqueeze(1)
        return torch.where(weight.unsqueeze(1) > 4, centre, torch.full_like(centre, torch.nan))


def _layer(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.GroupNorm(8, c_out), nn.ReLU())


class Judge(nn.Module):
    """A small convolutional net whose mask says where its shape and colour heads look.

    sizes: how many classes each label has; world: the name of the drawn world that they are of.
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
        seen, scene, mask = self._seen(images)
        colour, shape = self.sprite(seen).split(self.sizes, 1)
        return Verdict({"colour": colour, "shape": shape, "background": self.background(scene)}, mask)

    def features(self, images: Tensor) -> Tensor:
        """What the heads look at: of the sprite and of the whole picture, (n, 240)."""
        seen, scene, _ = self._seen(images)
        return torch.cat([seen, scene], 1)

    def _seen(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.fine(images * 2 - 1)  # h/2
        middle = self.middle(fine)  # h/4
        coarse = self.coarse(middle)  # h/8
        up = self.up(torch.cat([F.interpolate(coarse, scale_factor=2.0), middle], 1))
        mask = self.mask(torch.cat([F.interpolate(up, scale_factor=2.0), fine], 1))
        look = mask.sigmoid()
        return torch.cat([_pooled(coarse, look), _pooled(middle, look)], 1), coarse.mean((2, 3)), mask


def _pooled(features: Tensor, mask: Tensor) -> Tensor:
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
