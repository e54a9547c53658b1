"""Pseudo-videos (VidRD, arXiv 2309.03549, section 4.2): a camera that zooms and pans over a captioned image.

The paper makes them with FFmpeg, about two seconds each, and gives no more details: the ranges here are ours. FFmpeg's
zoompan filter rounds the view to whole pixels of the image, so a slow pan jitters by up to half a pixel, and a model
learns that jitter. `smooth` interpolates between pixels instead; `zoompan` is the paper's method, for comparison.

Shapes: an image is (3, P, P) in -1..1, frames are (f, 3, size, size).
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av.filter
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from . import latents
from .order import row

log = logging.getLogger(__name__)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
NARROWEST, WIDEST = 0.6, 1.0  # side of the view, as a share of the image's side


@dataclass(frozen=True)
class View:
    """The square that a camera sees: its centre and side, as shares of the image's side."""

    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Camera:
    """A view that moves at a constant rate from its position in the first frame to that in the last."""

    first: View
    last: View

    def at(self, share: float) -> View:
        """The view after a share of the clip, 0 (first frame) to 1 (last frame)."""
        pairs = zip(vars(self.first).values(), vars(self.last).values(), strict=True)
        return View(*(a + (b - a) * share for a, b in pairs))


Render = Callable[[Tensor, Camera, int, int], Tensor]


def camera(seed: int, k: int) -> Camera:
    """The camera of pseudo-video k: two random views within the image."""
    rng = random.Random(f"camera/{seed}/{k}")

    def view() -> View:
        side = rng.uniform(NARROWEST, WIDEST)
        x, y = (rng.uniform(side / 2, 1 - side / 2) for _ in range(2))
        return View(x, y, side)

    return Camera(view(), view())


def smooth(image: Tensor, camera: Camera, frames: int, size: int) -> Tensor:
    """The frames by bilinear interpolation between pixels. A large image is downscaled first, to avoid aliasing."""
    narrowest = min(camera.first.side, camera.last.side) * image.shape[-1]
    if narrowest > size:
        smaller = max(size, round(image.shape[-1] * size / narrowest))
        image = F.interpolate(image[None], (smaller, smaller), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    places = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5  # pixel centres, as shares of the view
    grids = []
    for i in range(frames):
        view = camera.at(i / max(1, frames - 1))
        xs, ys = (2 * (centre + view.side * places) - 1 for centre in (view.x, view.y))
        grids.append(torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1))
    grid = torch.stack(grids).to(image)
    return F.grid_sample(image.expand(frames, -1, -1, -1), grid, padding_mode="border", align_corners=False)


def zoompan(image: Tensor, camera: Camera, frames: int, size: int) -> Tensor:
    """The frames as FFmpeg's zoompan filter makes them: each view starts at a whole pixel."""
    share = f"(on/{max(1, frames - 1)})"
    x, y, side = (
        f"({getattr(camera.first, name)}+({getattr(camera.last, name) - getattr(camera.first, name)})*{share})"
        for name in ("x", "y", "side")
    )
    rules = f"z='1/{side}':x='iw*({x}-{side}/2)':y='ih*({y}-{side}/2)':d={frames}:s={size}x{size}:fps=25"
    pixels = ((image.permute(1, 2, 0) + 1) * 127.5).round().byte().contiguous().numpy()
    picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 25)
    )
    graph.link_nodes(source, graph.add("zoompan", rules), graph.add("format", "rgb24"), graph.add("buffersink"))
    graph.configure()
    graph.push(picture)
    graph.push(None)
    pictures = [graph.vpull().to_ndarray(format="rgb24") for _ in range(frames)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def encode_folder(
    vae,
    images: Path,
    out: Path,
    *,
    clips: int,
    frames: int,
    fps: float,
    size: int,
    scale: float,
    shard: int = 250,
    seed: int = 0,
    render: Render = smooth,
) -> int:
    """Write the latents of `clips` pseudo-videos of a folder of images, in shards; returns the number of clips.

    Every pass visits each image once, with another camera each time. Raises ValueError when a caption is missing.
    """
    files = sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES)
    captions = latents.captions_of(files, images, "image")
    writer = latents.ShardWriter(out, vae, {"seed": "0", "times": latents.times_of(frames, fps)}, shard)
    for k in range(clips):
        i = row(seed, k, len(files))
        video = render(square(files[i]), camera(seed, k), frames, size)
        writer.add(latents.encode_frames(vae, video, scale), captions[i], video[0])
    log.info("wrote %d pseudo-videos of %d images", writer.close(), len(files))
    return writer.done


def square(file: Path) -> Tensor:
    """The centre square of an image file: (3, P, P) in -1..1."""
    with Image.open(file) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    h, w, _ = pixels.shape
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    return pixels[top : top + side, left : left + side].permute(2, 0, 1).float() / 127.5 - 1
