"""The video judge of the pocket's world: it classifies a clip's motion, speed, order and content. Its features are used
for pocket FVD.

Like the image judge, it is trained only on rendered ground truth. Half of its clips are played backwards, so that the
trail behind a sprite does not reveal its motion and the judge must use the order of the frames.
Shapes: n clips, f frames, h = w = 64; images are RGB in 0..1.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .judge import FIRST_WORLD

SYSTEM = "video_judge"
FRAMES = 16
FEATURES = 64
# classes of the first world, of whose judge the header says nothing
FIRST_SIZES = {"motion": 6, "speed": 3, "order": 2, "colour": 8, "shape": 8, "background": 6, "size": 3}


class Spatial(nn.Module):
    """A convolution within each frame: (n, f, c, h, w) -> (n, f, c', h', w')."""

    def __init__(self, c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, 1, bias=False)
        self.norm = nn.GroupNorm(8, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.flatten(0, 1))).relu().unflatten(0, (len(x), -1))


class Temporal(nn.Module):
    """A convolution over three frames, pixel by pixel: (n, f, c, h, w) -> (n, f', c, h, w).

    It is a 3 x 1 convolution of f x (h w) images, because torch's Conv3d is many times slower on a CPU.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (3, 1), (stride, 1), (1, 0), bias=False)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x.transpose(1, 2).flatten(3))).relu()
        return y.unflatten(3, x.shape[3:]).transpose(1, 2)


class VideoJudge(nn.Module):
    """sizes: how many classes each label has; world: the name of the drawn world that they are of."""

    def __init__(self, sizes: Mapping[str, int] = FIRST_SIZES, world: str = FIRST_WORLD) -> None:
        super().__init__()
        self.world, self.classes = world, dict(sizes)
        self.trunk = nn.ModuleList(  # 64 -> 16 -> 8 pixels, 16 -> 8 -> 4 frames
            [
                nn.Sequential(Spatial(3, 48, kernel=6, stride=4), Temporal(48, 1)),
                nn.Sequential(Spatial(48, 64, stride=2), Temporal(64, 2)),
                nn.Sequential(Spatial(64, 96), Temporal(96, 2)),
            ]
        )
        self.embed = nn.Linear(2 * (48 + 64 + 96), FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, classes) for name, classes in self.classes.items()})

    def features(self, clips: Tensor) -> Tensor:
        """(n, f, 3, 64, 64) -> (n, 64): the input of the heads."""
        x, pooled = clips * 2 - 1, []
        for stage in self.trunk:  # the first stage detects edges and thus shapes, the last motion
            x = stage(x)
            pooled += [x.mean((1, 3, 4)), x.amax((1, 3, 4))]
        return self.embed(torch.cat(pooled, 1))

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Logits of each label, (n, classes)."""
        hidden = self.features(clips).relu()
        return {name: head(hidden) for name, head in self.heads.items()}


@torch.no_grad()
def clip_features(judge: VideoJudge, clips: Iterable[Tensor]) -> Tensor:
    """Features (n, 64) of clips (f, 3, 64, 64), one clip at a time, to save memory."""
    rows = []
    for clip in clips:
        if clip.shape[0] != FRAMES or clip.shape[1:] != (3, 64, 64):
            raise ValueError(
                f"pocket FVD: a clip has the shape {tuple(clip.shape)}, but the video judge was trained on "
                f"({FRAMES}, 3, 64, 64); give clips of this shape"
            )
        rows.append(judge.features(clip.unsqueeze(0))[0])
    return torch.stack(rows)


def save_video_judge(judge: VideoJudge, path: Path, accuracy: dict[str, float]) -> None:
    """Save in half precision, with `accuracy` (label -> share, on held-out rendered clips) in the header."""
    weights = {name: value.half().contiguous() for name, value in judge.state_dict().items()}
    header = {"format": "stillmotion/1", "system": SYSTEM, "accuracy": json.dumps(accuracy)}
    header |= {"world": judge.world, "classes": json.dumps(judge.classes)}
    save_file(weights, path, header)


def load_video_judge(path: Path) -> tuple[VideoJudge, dict[str, float]]:
    """The judge and its accuracy on held-out rendered clips. ValueError for any other file."""
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
        if header.get("system") != SYSTEM:
            raise ValueError(
                f"{path} is not a video judge but {header.get('system', 'a file without our header')!r}; give the "
                "video judge of the pocket"
            )
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  not a mapping
    sizes = json.loads(header["classes"]) if "classes" in header else FIRST_SIZES
    judge = VideoJudge(sizes, header.get("world", FIRST_WORLD))
    judge.load_state_dict(weights)
    return judge.eval().requires_grad_(False), json.loads(header["accuracy"])
