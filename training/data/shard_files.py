"""One shard of a cache of latents as a file, and the mark that a cache is complete.

The header of a shard holds the digest of its tensors. The verb `latents` writes `complete.json` after the last shard,
so that a cache whose encoding was killed is not taken for a complete one; its shards say that there is such a mark.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...model_patches.files import digest_of, parse_json, read_json, write_text
from ..plans.errors import InputError

END = "complete.json"
ENDED = {"end": END}  # entry of the header of shards whose cache has an end mark
DIGEST = "digest"
NAME, IMAGES = "latents", "images"  # names of the tensors in a shard


class ShardError(InputError):
    """A shard is damaged, or a cache is not complete."""


def read(file: Path) -> tuple[dict[str, str], Tensor, tuple[int, ...]]:
    """Header, latents (n, t, 4, h, w), and the shape of a first frame, () when there are none.

    ShardError, naming the file, for whatever is not a whole shard of finite floating-point numbers.
    """
    try:
        with safe_open(file, "pt") as content:
            header = dict(content.metadata() or {})
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        _check(header, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)[:300]
        raise ShardError(f"{file} is no whole shard of latents ({reason}); encode the clips again") from error
    images = tensors.get(IMAGES)
    return header, tensors[NAME], () if images is None else tuple(images.shape[1:])


def _check(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    latents = tensors[NAME]
    if not latents.is_floating_point() or latents.ndim != 5 or not latents.numel():
        kind = str(latents.dtype).removeprefix("torch.")
        raise ValueError(
            f"its latents are {kind} of the shape {tuple(latents.shape)}, not floating-point (n, t, 4, h, w)"
        )
    if header.get(DIGEST, "") not in ("", digest_of(tensors)):
        raise ValueError("its content is not what was written: the digest differs")
    if not all(bool(torch.isfinite(clip).all()) for clip in latents):
        raise ValueError("its latents contain NaN or infinite values")
    times = [float(time) for time in header["times"].split(",")]
    if len(times) != latents.shape[1] or not all(math.isfinite(time) for time in times):
        raise ValueError(f"its header has {len(times)} times for clips of {latents.shape[1]} frames")
    if min(int(header["first"]), int(header["seed"])) < 0 or not header["vae"]:
        raise ValueError("its header has numbers below 0, or no autoencoder")
    _check_captions(parse_json(header.get("captions", "[]")), len(latents))
    images = tensors.get(IMAGES)
    if images is not None and (images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(latents)):
        raise ValueError(f"its first frames have the shape {tuple(images.shape)} for {len(latents)} clips")


def _check_captions(captions: Any, clips: int) -> None:
    is_list = isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)
    if not is_list or len(captions) not in (0, clips):
        raise ValueError(f"its captions are no list of texts for {clips} clips")


def write_end(folder: Path, clips: int) -> None:
    """Mark a cache as complete."""
    write_text(json.dumps({"clips": clips}), folder / END)


def check_end(folder: Path, headers: Sequence[Mapping[str, str]], clips: int) -> None:
    """ShardError when the shards have an end mark that is missing, or is for another number of clips."""
    if not any("end" in header for header in headers):
        return
    try:
        expected = read_json(folder / END)["clips"]
    except FileNotFoundError as error:
        raise ShardError(
            f"the latents in {folder} are not complete, because their encoding was stopped ({END} is missing); delete "
            "the folder and encode the clips again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{folder / END} cannot be read ({error}); encode the clips again") from error
    if expected != clips:
        raise ShardError(
            f"{folder} has {clips} of {expected} clips; copy the missing shards, or encode the clips again"
        )
