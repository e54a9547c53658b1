"""Damaged caches of latents, and damaged lists of clips."""

import json
import random
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save

from ...model_patches.files import digest_of
from ...training.data import latents, selection, shard_files
from .damage import as_text, changed_json, damaged, damaged_text, odd_value
from .harness import Case, Kind
from .naming import Named, named

VAE = torch.nn.Linear(2, 2)
TYPES = (torch.int8, torch.bool, torch.int64, torch.complex64, torch.float64)


@cache
def _tensors() -> dict[str, torch.Tensor]:
    values = torch.randn(3, 2, 4, 2, 2, generator=torch.Generator().manual_seed(0)).half()
    return {"latents": values, "images": torch.zeros(3, 3, 8, 8, dtype=torch.uint8)}


def _header(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    captions = latents.as_json(["a", "b", "c"])
    header = {"seed": "0", "times": "0.0,0.5", "first": "0", "captions": captions, "vae": latents.weights_hash(VAE)}
    return header | shard_files.ENDED | {shard_files.DIGEST: digest_of(tensors)}


def warm(folder: Path) -> Case:
    (folder / "clips-000000.safetensors").write_bytes(save(_tensors(), _header(_tensors())))
    shard_files.write_end(folder, 3)
    return Case(folder, "whole")


def make(rng: random.Random, folder: Path) -> Case:
    case = warm(folder)
    shard, label = folder / "clips-000000.safetensors", rng.choice(("bytes", "header", "tensor", "end", "list", "list"))
    tensors, header = dict(_tensors()), _header(_tensors())
    if label == "bytes":
        shard.write_bytes(damaged(shard.read_bytes(), rng)[0])
    elif label == "header":
        name = rng.choice(sorted(header))
        if rng.random() < 0.2:
            del header[name]
        else:
            header[name] = rng.choice((as_text(odd_value(rng)), "[" * 100_000, "", "x"))
        shard.write_bytes(save(tensors, header))
    elif label == "tensor":
        name = rng.choice(sorted(tensors))
        value = tensors[name].to(rng.choice(TYPES))
        tensors[name] = rng.choice((value, value.flatten(), value[:1].clone(), tensors["latents"] * float("nan")))
        shard.write_bytes(save(tensors, header | {"digest": rng.choice(("", digest_of(tensors)))}))
    elif label == "end":
        (folder / shard_files.END).write_bytes(damaged_text('{"clips": 3}', rng))
    else:
        return _list(rng, folder)
    return Case(case.path, label)


def _list(rng: random.Random, folder: Path) -> Case:
    head = {"format": selection.FORMAT, "source": {"latents": "x"}, "stages": []}
    rows = [{"clip": i, "name": f"a.mp4 {i}", "kept": True, "motion": 2.5} for i in range(3)]
    lines = [json.dumps(head), *map(json.dumps, rows)]
    place = rng.randrange(4)
    lines[place] = as_text(changed_json([head, *rows][place], rng))
    path = folder / "list.jsonl"
    text = "\n".join(lines)
    path.write_bytes(damaged_text(text, rng) if rng.random() < 0.3 else text.encode())
    return Case(path, "list")


def read(case: Case) -> object:
    if case.label == "list":
        return named(lambda: selection.load(case.path))
    return named(lambda: latents.read(case.path, VAE))


def is_right(case: Case, value: object) -> bool:
    """A list has whole numbers as clips; a cache has the clips that were written, or what its own file says."""
    if isinstance(value, selection.Selection):
        return all(type(row.clip) is int and type(row.kept) is bool for row in value.rows)
    assert isinstance(value, latents.Latents)
    same = all(torch.equal(value.values[i], _tensors()["latents"][i]) for i in range(len(value)))
    return len(value) == 3 and (same or case.label == "tensor")


KIND = Kind("caches", make, read, is_right, (Named,), warm)
