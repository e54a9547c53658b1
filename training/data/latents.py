"""Latents of clips, encoded once: shards `clips-NNNNNN.safetensors` with (n, t, 4, h, w) in half precision.

Clip `i` of a cache of drawn clips is `sprites.clip(seed, i)` at the t frame times of a whole clip, so captions and
truth need no file; for clips of video files the captions are in the header, and the first frames beside the latents
as `images`, (n, 3, H, W) in bytes. The hash of the autoencoder is there, too: latents of another autoencoder are
refused, not used.
"""

import hashlib
import json
import logging
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ...model_patches.files import write_tensors
from ..plans.common import DataTable
from ..plans.errors import ConfigError
from . import selection, sprites

log = logging.getLogger(__name__)

NAME, IMAGES = "latents", "images"  # of the tensors in a shard


class Shards:
    """The clips of several files, one after another, read from disk when they are asked for.

    Clips of a real data set are larger than the memory. len() and shape are those of one tensor (n, t, 4, h, w), or
    (n, 3, H, W) of their first frames.
    """

    def __init__(self, files: list[Path], counts: list[int], shape: tuple[int, ...], name: str = NAME) -> None:
        self.files, self.shape, self.name = files, (sum(counts), *shape), name
        self.starts = [sum(counts[:i]) for i in range(len(counts))]
        self.slices: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, i: int) -> Tensor:  # (t, 4, h, w), or (3, H, W)
        if not 0 <= i < len(self):
            raise IndexError(f"clip {i} of {len(self)}")
        file = bisect_right(self.starts, i) - 1
        if file not in self.slices:
            self.slices[file] = safe_open(self.files[file], "pt").get_slice(self.name)
        return self.slices[file][i - self.starts[file]]

    def __getstate__(self) -> dict[str, Any]:  # an open file does not travel
        return vars(self) | {"slices": {}}


@dataclass(frozen=True)
class Latents:
    """Scaled latents (what the U-Net sees) and how to name their clips."""

    values: Tensor | Shards  # (n, t, 4, h, w), float16, standard deviation about 1
    times: list[float]
    seed: int
    told: list[str] = field(default_factory=list)  # captions of clips that are not drawn
    digest: str = ""  # of the shards' content
    kept: frozenset[int] | None = None  # the clips that a training takes; None: all
    images: Tensor | Shards | None = None  # (n, 3, H, W) bytes: first frames of clips that are not drawn, where kept

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(4, h, w) of a frame."""
        return (self.values.shape[2], self.values.shape[3], self.values.shape[4])

    def clip(self, i: int) -> sprites.Clip:
        return sprites.clip(self.seed, i)

    def at_rest(self, i: int) -> bool:
        """Whether a drawn clip is one of a sprite that does not move."""
        return not self.told and self.clip(i).motion == "still"

    def taken(self, still_weight: int = 1) -> list[int]:
        """The clips that an epoch takes: each kept one once, drawn clips at rest `still_weight` times."""
        clips = [i for i in range(len(self.values)) if self.kept is None or i in self.kept]
        return [i for i in clips for _ in range(still_weight if still_weight > 1 and self.at_rest(i) else 1)]

    def caption(self, i: int, rng: random.Random) -> str:
        """One of the wordings of a drawn clip's caption, or the caption of a video file."""
        return self.told[i] if self.told else sprites.caption(self.clip(i), rng)

    def wording(self, i: int, key: str, drop: float) -> str:
        """A caption of clip i, nothing for a share `drop`: a pure function of the key."""
        rng = random.Random(key)
        caption = self.caption(i, rng)
        return "" if rng.random() < drop else caption

    def frames(self, i: int, count: int) -> Tensor:
        """`count` frames of clip i, evenly spaced: (count, 4, h, w)."""
        return self.values[i][:: len(self.times) // count][:count].float()

    def has_images(self) -> bool:
        """Whether the first frames are known as pixels: drawn clips are drawn again."""
        return not self.told or self.images is not None

    def image(self, i: int, size: int) -> Tensor:
        """Frame 0 of clip i before it was encoded, (3, size, size) in 0..1. ValueError where it is not known, or was
        kept at another size."""
        if not self.told:
            return sprites.render(self.clip(i), self.times[:1], size=size)[0]
        if self.images is None or self.images.shape[-1] != size:
            raise ValueError(f"these latents hold no first frames of {size} x {size} pixels; encode the clips again")
        return self.images[i].float() / 255


def weights_hash(module: nn.Module) -> str:
    return tensors_hash(module.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Of names and content, whatever their order."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        content: Any = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(name.encode())
        digest.update(content)
    return digest.hexdigest()[:16]


@torch.no_grad()
def encode(
    vae,
    path: Path,
    *,
    first: int,
    count: int,
    times: list[float],
    seed: int,
    scale: float,
    size: int = 64,
    style: str = "plain",
) -> None:
    """Write the latents of drawn clips first..first+count-1, `size` pixels wide, in a style of `sprites`."""
    values = []
    for i in range(first, first + count):
        frames = sprites.render(sprites.clip(seed, i), times, size=size, style=style) * 2 - 1
        values.append(encoded(vae, frames, scale))
        if (i - first + 1) % 200 == 0:
            log.info("encoded %d of %d clips", i - first + 1, count)
    header = {"seed": str(seed), "first": str(first), "times": ",".join(map(str, times))}
    write(path, values, vae, header | ({} if style == "plain" else {"style": style}))


@torch.no_grad()
def encoded(vae, frames: Tensor, scale: float) -> Tensor:
    """Frames in -1..1 (t, 3, H, W) -> latents (t, 4, h, w) in half precision, as the U-Net sees them."""
    return (vae.encode(frames.to(next(vae.parameters()))).latent_dist.mean * scale).half().cpu()


def as_json(captions: list[str]) -> str:
    return json.dumps(captions, ensure_ascii=False)


def write(
    path: Path, values: list[Tensor], vae: nn.Module, header: dict[str, str], images: Sequence[Tensor] = ()
) -> None:
    """One shard, whole or not at all. images: first frames, (3, H, W) in bytes."""
    tensors = {NAME: torch.stack(values)} | ({IMAGES: torch.stack(list(images))} if images else {})
    write_tensors(tensors, path, header | {"vae": weights_hash(vae)})


class ShardWriter:
    """Clips with captions, one after another, into shards of `shard` clips. `header` has the seed and the times."""

    def __init__(self, out: Path, vae: nn.Module, header: dict[str, str], shard: int) -> None:
        self.out, self.vae, self.header, self.shard = out, vae, header, shard
        self.values: list[Tensor] = []
        self.captions: list[str] = []
        self.images: list[Tensor] = []
        self.done = 0

    def add(self, values: Tensor, caption: str, first: Tensor) -> None:
        """values: (t, 4, h, w), as `encoded` gives them; first: the clip's first frame, (3, H, W) in -1..1."""
        self.values.append(values)
        self.captions.append(caption)
        self.images.append(((first.clamp(-1, 1) + 1) * 127.5).round().byte())
        if len(self.values) == self.shard:
            self._flush()

    def close(self) -> int:
        """Write what is left; how many clips were written."""
        if self.values:
            self._flush()
        return self.done

    def _flush(self) -> None:
        told = self.header | {"first": str(self.done), "captions": as_json(self.captions)}
        write(self.out / f"clips-{self.done:06d}.safetensors", self.values, self.vae, told, self.images)
        self.done += len(self.values)
        self.values, self.captions, self.images = [], [], []


def captions_of(files: Sequence[Path], folder: Path, kind: str) -> list[str]:
    """The caption of each file, from the text file beside it. ValueError when one, or every file, is missing."""
    silent = [p.name for p in files if not p.with_suffix(".txt").is_file()]
    if silent or not files:
        what = f"{len(silent)} {kind}s have no caption, the first is {silent[0]}" if silent else f"there is no {kind}"
        raise ValueError(f"{folder}: {what}; put NAME.txt beside each {kind}")
    return [p.with_suffix(".txt").read_text(encoding="utf-8").strip() for p in files]


def times_of(frames: int, fps: float) -> str:
    """The frame times of a clip, as a header has them."""
    return ",".join(str(i / fps) for i in range(frames))


def read(folder: Path, vae: nn.Module) -> Latents:
    """All shards of a folder, in order."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"no latents in {folder}; make them with: python -m stillmotion.training pocket latents (drawn clips, "
            "pocket model), or python -m stillmotion.training latents"
        )
    shards, shown, digest, own = [], [], hashlib.sha256(), weights_hash(vae)
    for file in files:
        with safe_open(file, "pt") as f:
            header, content = f.metadata(), f.get_tensor(NAME)
            if IMAGES in f.keys():  # noqa: SIM118  no mapping
                shown.append(tuple(f.get_slice(IMAGES).get_shape()[1:]))
        if header["vae"] != own:
            raise ValueError(f"{file} was encoded by another autoencoder; delete {folder} and encode again")
        shards.append((int(header["first"]), file, tuple(content.shape), header))
        digest.update(json.dumps(dict(sorted(header.items()))).encode())
        digest.update(content.contiguous().view(torch.uint8).numpy())
    shards.sort(key=lambda shard: shard[0])
    _check_shards(folder, [first for first, *_ in shards], [shape for _, _, shape, _ in shards])
    files, counts = [s[1] for s in shards], [s[2][0] for s in shards]
    values = Shards(files, counts, shards[0][2][1:])
    images = Shards(files, counts, shown[0], IMAGES) if len(shown) == len(shards) and len(set(shown)) == 1 else None
    captions = [caption for *_, header in shards for caption in json.loads(header.get("captions", "[]"))]
    header = shards[-1][3]
    times = [float(t) for t in header["times"].split(",")]
    return Latents(values, times, int(header["seed"]), captions, digest.hexdigest()[:16], images=images)


def _check_shards(folder: Path, starts: list[int], shapes: list[tuple[int, ...]]) -> None:
    """ValueError when clips are missing between the shards, or are of several sizes."""
    if starts != [sum(shape[0] for shape in shapes[:j]) for j in range(len(shapes))]:
        raise ValueError(f"the shards in {folder} have gaps: they begin at clips {starts}; encode again")
    if len({shape[1:] for shape in shapes}) > 1:
        sizes = sorted({"x".join(map(str, shape[1:])) for shape in shapes})
        raise ValueError(f"the shards in {folder} have clips of several sizes ({', '.join(sizes)}); encode again")


def for_training(data: DataTable, vae: nn.Module) -> Latents:
    """The latents that a config names. ConfigError when there are none, or their clips are too short."""
    if not data.latents:
        raise ConfigError("data.latents is empty; give the folder of latents (--latents), made by the verb `latents`")
    cache = read(Path(data.latents), vae)
    if data.frames > len(cache.times):
        raise ConfigError(
            f"data.frames is {data.frames}, the clips in {data.latents} have {len(cache.times)}; encode longer clips "
            "or use fewer frames"
        )
    return chosen(cache, Path(data.kept)) if data.kept else cache


def chosen(cache: Latents, path: Path) -> Latents:
    """The cache with the clips of a list of the verb `select`. ConfigError when it is for others, or keeps none."""
    found = selection.load(path)
    selection.check_source(found, {"latents": cache.digest}, path)
    if not found.kept:
        raise ConfigError(f"{path} keeps no clip; make it again with `select` and wider limits")
    numbers = ",".join(map(str, sorted(found.kept)))
    digest = hashlib.sha256(f"{cache.digest}/{numbers}".encode()).hexdigest()[:16]
    return replace(cache, kept=found.kept, digest=digest)
