"""Latents of clips, encoded once: shards `clips-NNNNNN.safetensors` with (n, t, 4, h, w) in half precision.

Clip `i` of a cache of drawn clips is `clip(seed, i)` of their world at the t frame times of a clip, so captions and
ground truth need no file. For clips of video files the header holds the captions, and the shard also holds the first
frames as `images`, (n, 3, H, W) in bytes. The header also holds the hash of the autoencoder: latents that were encoded
by another autoencoder are refused.
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

from ...model_patches.files import digest_of, parse_json, write_tensors
from ..plans.common import DataTable
from ..plans.errors import ConfigError
from . import selection, shard_files
from .shard_files import IMAGES, NAME
from .worlds import SPRITES, World, named

log = logging.getLogger(__name__)

MIN_VISIBLE = 0.5  # visible share of the subject in a frame that its caption describes


class Shards:
    """The clips of several files as one sequence, read from disk on access.

    A real data set does not fit into memory. len() and shape are those of one tensor: (n, t, 4, h, w) for latents, or
    (n, 3, H, W) for first frames.
    """

    def __init__(self, files: list[Path], counts: list[int], shape: tuple[int, ...], name: str = NAME) -> None:
        self.files, self.shape, self.name = files, (sum(counts), *shape), name
        self.starts = [sum(counts[:i]) for i in range(len(counts))]
        self.slices: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, i: int) -> Tensor:  # (t, 4, h, w), or (3, H, W)
        if not 0 <= i < len(self):
            raise IndexError(f"there is no clip {i} of {len(self)}; use 0 to {len(self) - 1}")
        file = bisect_right(self.starts, i) - 1
        if file not in self.slices:
            self.slices[file] = safe_open(self.files[file], "pt").get_slice(self.name)
        return self.slices[file][i - self.starts[file]]

    def __getstate__(self) -> dict[str, Any]:  # an open file cannot be pickled
        return vars(self) | {"slices": {}}


@dataclass(frozen=True)
class Latents:
    """Scaled latents (the input of the U-Net), and what identifies and captions their clips."""

    values: Tensor | Shards  # (n, t, 4, h, w), float16, standard deviation about 1
    times: list[float]
    seed: int
    captions: list[str] = field(default_factory=list)  # of video clips; drawn clips make their own
    digest: str = ""  # hash of the shards' content
    subset: frozenset[int] | None = None  # the clips used for training; None means all
    images: Tensor | Shards | None = None  # (n, 3, H, W) bytes: first frames of video clips, if they were stored
    world_name: str = SPRITES.NAME  # of drawn clips

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the latent of one frame: (4, h, w)."""
        return (self.values.shape[2], self.values.shape[3], self.values.shape[4])

    @property
    def world(self) -> World:
        return named(self.world_name)

    def clip(self, i: int) -> Any:
        """The specification of a drawn clip."""
        return self.world.clip(self.seed, i)

    def frames_with_subject(self, i: int) -> list[int]:
        """The frames of clip i in which its subject is visible; all frames of a video clip."""
        if self.captions:
            return list(range(len(self.times)))
        shares = self.world.visible(self.clip(i), self.times)
        return [frame for frame, share in enumerate(shares) if share >= MIN_VISIBLE]

    def at_rest(self, i: int) -> bool:
        """Whether clip i is a drawn clip whose sprite does not move."""
        return not self.captions and self.clip(i).motion == "still"

    def epoch(self, still_weight: int = 1) -> list[int]:
        """The clips of one epoch: each clip of the subset once, but drawn clips at rest `still_weight` times."""
        clips = [i for i in range(len(self.values)) if self.subset is None or i in self.subset]
        return [i for i in clips for _ in range(still_weight if still_weight > 1 and self.at_rest(i) else 1)]

    def caption(self, i: int, rng: random.Random) -> str:
        """A random wording of a drawn clip's caption, or the caption of a video clip."""
        return self.captions[i] if self.captions else self.world.caption(self.clip(i), rng)

    def wording(self, i: int, key: str, drop: float) -> str:
        """A caption of clip i, or "" with probability `drop`: a pure function of the key."""
        rng = random.Random(key)
        caption = self.caption(i, rng)
        return "" if rng.random() < drop else caption

    def frames(self, i: int, count: int) -> Tensor:
        """`count` frames of clip i, evenly spaced: (count, 4, h, w)."""
        return self.values[i][:: len(self.times) // count][:count].float()

    def has_images(self) -> bool:
        """Whether the pixels of the first frames are available; those of drawn clips are rendered again."""
        return not self.captions or self.images is not None

    def image(self, i: int, size: int) -> Tensor:
        """Frame 0 of clip i before it was encoded, (3, size, size) in 0..1.

        Raises ValueError when it was not stored, or was stored at another size.
        """
        if not self.captions:
            return self.world.render(self.clip(i), self.times[:1], size=size)[0]
        if self.images is None or self.images.shape[-1] != size:
            raise ValueError(f"these latents hold no first frames of {size} x {size} pixels; encode the clips again")
        return self.images[i].float() / 255


def weights_hash(module: nn.Module) -> str:
    return tensors_hash(module.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names and content; the order of the tensors does not matter."""
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
    world: World = SPRITES,
    more: Mapping[str, str] | None = None,
) -> None:
    """Write the latents of drawn clips first..first+count-1, `size` pixels wide, in a style of their world. more:
    further entries of the header."""
    values = []
    for i in range(first, first + count):
        frames = world.render(world.clip(seed, i), times, size=size, style=style) * 2 - 1
        values.append(encode_frames(vae, frames, scale))
        if (i - first + 1) % 200 == 0:
            log.info("encoded %d of %d clips", i - first + 1, count)
    header = {"seed": str(seed), "first": str(first), "times": ",".join(map(str, times))}
    header |= {} if world is SPRITES else {"world": world.NAME}
    header |= more or {}
    write(path, values, vae, header | ({} if style == "plain" else {"style": style}))


@torch.no_grad()
def encode_frames(vae, frames: Tensor, scale: float) -> Tensor:
    """Frames in -1..1 (t, 3, H, W) -> scaled latents (t, 4, h, w) in half precision, as the U-Net expects them."""
    return (vae.encode(frames.to(next(vae.parameters()))).latent_dist.mean * scale).half().cpu()


def as_json(captions: list[str]) -> str:
    return json.dumps(captions, ensure_ascii=False)


def write(
    path: Path, values: list[Tensor], vae: nn.Module, header: dict[str, str], images: Sequence[Tensor] = ()
) -> None:
    """Write one shard; an interrupted write leaves no partial file. images: first frames, (3, H, W) in bytes."""
    tensors = {NAME: torch.stack(values)} | ({IMAGES: torch.stack(list(images))} if images else {})
    write_tensors(tensors, path, header | {"vae": weights_hash(vae), shard_files.DIGEST: digest_of(tensors)})


class ShardWriter:
    """Collects captioned clips and writes them in shards of `shard` clips. `header` has the seed and the times."""

    def __init__(self, out: Path, vae: nn.Module, header: dict[str, str], shard: int) -> None:
        self.out, self.vae, self.header, self.shard = out, vae, header, shard
        self.values: list[Tensor] = []
        self.captions: list[str] = []
        self.images: list[Tensor] = []
        self.done = 0

    def add(self, values: Tensor, caption: str, first: Tensor) -> None:
        """values: (t, 4, h, w), as returned by `encode_frames`; first: the clip's first frame, (3, H, W) in -1..1."""
        self.values.append(values)
        self.captions.append(caption)
        self.images.append(((first.clamp(-1, 1) + 1) * 127.5).round().byte())
        if len(self.values) == self.shard:
            self._flush()

    def close(self) -> int:
        """Write the remaining clips and the end mark; returns the number of clips written in total."""
        if self.values:
            self._flush()
        if self.done:
            shard_files.write_end(self.out, self.done)
        return self.done

    def _flush(self) -> None:
        header = self.header | {"first": str(self.done), "captions": as_json(self.captions)} | shard_files.ENDED
        write(self.out / f"clips-{self.done:06d}.safetensors", self.values, self.vae, header, self.images)
        self.done += len(self.values)
        self.values, self.captions, self.images = [], [], []


def captions_of(files: Sequence[Path], folder: Path, kind: str) -> list[str]:
    """The caption of each file, from the text file beside it. Raises ValueError for a missing caption or no files."""
    missing = [p.name for p in files if not p.with_suffix(".txt").is_file()]
    if missing or not files:
        fault = f"there is no {kind}"
        if missing:
            fault = f"{len(missing)} {kind}s have no caption, the first is {missing[0]}"
        raise ValueError(f"{folder}: {fault}; put NAME.txt beside each {kind}")
    return [_caption(p.with_suffix(".txt")) for p in files]


def _caption(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); save it as UTF-8") from error


def times_of(frames: int, fps: float) -> str:
    """The frame times of a clip in seconds, in the format of the header."""
    return ",".join(str(i / fps) for i in range(frames))


def read(folder: Path, vae: nn.Module) -> Latents:
    """All shards of a folder, in the order of their clips.

    Raises FileNotFoundError when there are none, and ValueError when they are incomplete, have clips of several sizes
    or were encoded by another autoencoder.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"there are no latents in {folder}; make them with: python -m stillmotion.training pocket latents (drawn "
            "clips, pocket model), or python -m stillmotion.training latents"
        )
    shards, image_shapes, digest, vae_hash = [], [], hashlib.sha256(), weights_hash(vae)
    for file in files:
        header, content, image_shape = shard_files.read(file)
        if image_shape:
            image_shapes.append(image_shape)
        if header["vae"] != vae_hash:
            raise ValueError(f"{file} was encoded by another autoencoder; delete {folder} and encode again")
        shards.append((int(header["first"]), file, tuple(content.shape), header))
        digest.update(json.dumps(dict(sorted(header.items()))).encode())
        stored: Any = content.contiguous().view(torch.uint8).numpy()
        digest.update(stored)
    shards.sort(key=lambda shard: shard[0])
    _check_shards(folder, [first for first, *_ in shards], [shape for _, _, shape, _ in shards])
    shard_files.check_end(folder, [header for *_, header in shards], sum(shape[0] for _, _, shape, _ in shards))
    files, counts = [s[1] for s in shards], [s[2][0] for s in shards]
    values = Shards(files, counts, shards[0][2][1:])
    complete = len(image_shapes) == len(shards) and len(set(image_shapes)) == 1
    images = Shards(files, counts, image_shapes[0], IMAGES) if complete else None
    captions = [caption for *_, header in shards for caption in parse_json(header.get("captions", "[]"))]
    header = shards[-1][3]
    times = [float(t) for t in header["times"].split(",")]
    world, known = header.get("world", SPRITES.NAME), digest.hexdigest()[:16]
    return Latents(values, times, int(header["seed"]), captions, known, images=images, world_name=world)


def _check_shards(folder: Path, starts: list[int], shapes: list[tuple[int, ...]]) -> None:
    """Raise ValueError when clips are missing between the shards, or have different sizes."""
    if starts != [sum(shape[0] for shape in shapes[:j]) for j in range(len(shapes))]:
        raise ValueError(f"the shards in {folder} have gaps: they start at clips {starts}; encode the clips again")
    if len({shape[1:] for shape in shapes}) > 1:
        sizes = sorted({"x".join(map(str, shape[1:])) for shape in shapes})
        raise ValueError(
            f"the shards in {folder} have clips of several sizes ({', '.join(sizes)}); encode the clips again"
        )


def for_training(data: DataTable, vae: nn.Module) -> Latents:
    """The latents that a config names. Raises ConfigError when there are none, or their clips are too short."""
    if not data.latents:
        raise ConfigError("data.latents is empty; give the folder of latents (--latents), made by the verb `latents`")
    cache = read(Path(data.latents), vae)
    if data.frames > len(cache.times):
        raise ConfigError(
            f"data.frames is {data.frames}, but the clips in {data.latents} have {len(cache.times)} frames; encode "
            "longer clips or lower data.frames"
        )
    return restrict(cache, Path(data.selection)) if data.selection else cache


def restrict(cache: Latents, path: Path) -> Latents:
    """The cache, restricted to the clips of a list of the verb `select`.

    Raises ConfigError when the list was made for other clips or keeps none.
    """
    clip_list = selection.load(path)
    selection.check_source(clip_list, {"latents": cache.digest}, path)
    if not clip_list.kept:
        raise ConfigError(f"{path} keeps no clip; make it again with `select` and wider limits")
    numbers = ",".join(map(str, sorted(clip_list.kept)))
    digest = hashlib.sha256(f"{cache.digest}/{numbers}".encode()).hexdigest()[:16]
    return replace(cache, subset=clip_list.kept, digest=digest)
