"""Damaged weight files: ours of every system, AnimateDiff's, diffusers' and VidRD's, as safetensors and as pickles."""

import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ...model_patches import checkpoint, layouts, systems
from ...model_patches.artv.config import ArtvConfig
from ...model_patches.dreamvideo.config import DreamVideoConfig, RetentionConfig
from ...model_patches.files import digest_of
from ...model_patches.harivo.config import HarivoConfig
from ...model_patches.vidrd.config import DecoderConfig, VidrdConfig
from .damage import as_text, changed_json, damaged, odd_value
from .harness import MARKER, Case, Kind

MOTION = {"block_channels": [32, 64], "layers_per_block": 1, "heads": 4, "max_frames": 8}
VIDRD = VidrdConfig(block_channels=(32, 64), attention=(True, True), heads=(4, 4), layers_per_block=1, context_dim=16)
BRANCH = RetentionConfig(
    block_channels=(32, 64),
    attention=(True, True),
    heads=(4, 4),
    context_dim=16,
    layers_per_block=1,
    hint_channels=(8,),
)
ARTV = ArtvConfig(
    block_channels=(32, 64), attention=(True, True), heads=(4, 4), mask_channels=(32, 32), mask_heads=(4, 4),
    layers_per_block=1, context_dim=16, adapter_blocks=1, anchor_ff=1,
)  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "motion": MOTION,
    "harivo": HarivoConfig.from_dict(
        {"motion": MOTION, "mapping": {"width": 16, "max_frames": 8}, "tokens": {"context_dim": 16, "frames": 8}}
    ).to_dict(),
    "vidrd": VIDRD.to_dict(),
    "vidrd_decoder": DecoderConfig(block_channels=(32, 64), layers_per_block=1).to_dict(),
    "artv": ARTV.to_dict(),
    "dreamvideo": DreamVideoConfig(branch=BRANCH, layers=VIDRD.to_dict(), motion=True).to_dict(),
}
TYPES = (torch.int8, torch.uint8, torch.bool, torch.int64, torch.complex64, torch.float64, torch.bfloat16)
Weights = dict[str, Tensor]


@cache
def weights_of(name: str) -> Weights:
    """Weights with random numbers for each of CONFIGS; they are never changed in place."""
    torch.manual_seed(0)
    system = systems.get(name)
    assert system is not None
    return {key: value.half() for key, value in system.model(CONFIGS[name]).state_dict().items()}


def header_of(name: str, weights: Mapping[str, Tensor]) -> dict[str, str]:
    config = as_text(CONFIGS[name])
    digest = digest_of(weights, f"{name} {config}")
    return {"format": checkpoint.FORMAT, "system": name, "config": config, "digest": digest, "step": "7"}


@cache
def foreign() -> dict[str, Weights]:
    """Weights in the layouts of other projects."""
    motion = weights_of("motion")
    decoder = {f"decoder.{name}": value for name, value in weights_of("vidrd_decoder").items()}
    within = {f"model.diffusion_model.{name}": value for name, value in motion.items()}
    tables = {"animatediff": motion, "diffusers": layouts.to_diffusers(motion), "vidrd": weights_of("vidrd")}
    return {**tables, "vidrd_decoder": decoder, "within": within}


def make(rng: random.Random, folder: Path) -> Case:
    maker = rng.choice((_stillmotion, _stillmotion, _stillmotion, _foreign, _foreign, _pickle, _pickle, _bomb))
    return maker(rng, folder)


def _stillmotion(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(sorted(CONFIGS))
    weights = weights_of(name)
    header, label = header_of(name, weights), "nothing"
    path, action = folder / f"{name}.safetensors", rng.randrange(5)
    if action == 0:
        header["config"] = as_text(changed_json(CONFIGS[name], rng))
        label = "config"
        if rng.random() < 0.5:
            header["digest"] = digest_of(weights, f"{name} {header['config']}")
    elif action == 1:
        entry = rng.choice(sorted(header))
        texts = ("", "[" * 100_000, "null", "[]", as_text(odd_value(rng)), "stillmotion/2", "motion")
        header[entry] = rng.choice(texts)
        label = entry
    elif action == 2:
        weights, label = _changed(weights, rng)
    content = save(weights, header)
    if action >= 3:
        content, label = damaged(content, rng)
    path.write_bytes(content)
    return Case(path, f"{name}: {label}", digest_of(weights_of(name)))


def _foreign(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(sorted(foreign()))
    weights, label = dict(foreign()[name]), "nothing"
    if rng.random() < 0.6:
        weights, label = _changed(weights, rng)
    content = save(weights)
    if label == "nothing":
        content, label = damaged(content, rng)
    path = folder / f"{name}.safetensors"
    path.write_bytes(content)
    return Case(path, f"{name} of others: {label}")


def _changed(weights: Weights, rng: random.Random) -> tuple[Weights, str]:
    """One weight, or the name of one, is another."""
    weights = dict(weights)
    key = rng.choice(sorted(weights))
    action = rng.choice(("type", "value", "shape", "remove", "number", "name", "extra", "empty"))
    if action == "type":
        weights[key] = weights[key].to(rng.choice(TYPES))
    elif action == "value":
        weights[key] = torch.full_like(weights[key], rng.choice((float("nan"), float("inf"), 0.0)))
    elif action == "shape":
        weights[key] = weights[key].flatten()[: rng.randrange(weights[key].numel() + 1)].clone()
    elif action == "remove":
        del weights[key]
    elif action == "number":
        number = rng.choice(("99999999", "9" * 30, "9" * 5000, "-1", "x", "1000"))
        parts = [number if part.isdecimal() and rng.random() < 0.5 else part for part in key.split(".")]
        weights[".".join(parts)] = weights.pop(key)
    elif action == "name":
        weights[key[: rng.randrange(len(key))] + rng.choice(("", "lora", "é", "\n"))] = weights.pop(key)
    elif action == "extra":
        weights[rng.choice(("global_step", "epoch", "x.y", "down_blocks.0.motion_modules.77.z"))] = torch.zeros(1)
    else:
        weights[key] = torch.zeros(0, dtype=torch.float16)
    return weights, action


def _pickle(rng: random.Random, folder: Path) -> Case:
    path = folder / f"weights{rng.choice(('.ckpt', '.pt', '.bin', '.pth', '.CKPT'))}"
    weights: Any = dict(foreign()[rng.choice(sorted(foreign()))])
    label = rng.choice(("accident", "changed", "wrapped", "code", "content"))
    if label == "changed":
        weights, label = _changed(weights, rng)
    elif label == "wrapped":
        weights = {"state_dict": weights, "global_step": 5, 3: torch.ones(1), "x": [torch.ones(2)], "optimizer": None}
    elif label == "code":
        weights = {"state_dict": Code(folder / MARKER)}
    elif label == "content":
        weights = rng.choice((5, [torch.ones(1)], {}, {"state_dict": {}}, {1: 2}, torch.ones(3), "text", None))
    buffer = io.BytesIO()
    torch.save(weights, buffer, _use_new_zipfile_serialization=rng.random() < 0.6)
    content = buffer.getvalue()
    if label == "accident":
        content, label = damaged(content, rng)
    path.write_bytes(content)
    return Case(path, f"pickle: {label}")


class Code:
    """A pickle of it makes a file when it is run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def _bomb(rng: random.Random, folder: Path) -> Case:
    """A small file that asks for much."""
    kind = rng.choice(("layers", "list", "keys", "stride", "zip", "header"))
    path = folder / ("bomb.ckpt" if kind in ("stride", "zip") else "bomb.safetensors")
    tiny = {"x": torch.zeros(1)}
    name = rng.choice(sorted(CONFIGS))
    header = {"format": checkpoint.FORMAT, "system": name}
    if kind == "layers":
        config = dict(CONFIGS[name])
        field = rng.choice([key for key, value in config.items() if isinstance(value, int)] or ["layers_per_block"])
        path.write_bytes(save(tiny, header | {"config": as_text(config | {field: rng.choice((10**8, 10**5, 2**20))})}))
    elif kind == "list":
        lists = {key: value * 10**5 for key, value in CONFIGS[name].items() if isinstance(value, list)}
        path.write_bytes(save(tiny, header | {"config": as_text(CONFIGS[name] | lists)}))
    elif kind == "keys":
        key = rng.choice(("motion_modules.99999999.temporal_transformer.norm", "temp_convs.99999999.convs.0"))
        path.write_bytes(
            save({f"down_blocks.0.{key}.weight": torch.zeros(32, 1, 1), "a.pos_encoder.pe": torch.zeros(1, 8, 1)})
        )
    elif kind == "stride":
        weights = dict(weights_of("motion"))
        table = next(key for key in weights if key.endswith(".pe"))
        torch.save(weights | {table: torch.zeros(1).expand(1, 10**7, 320)}, path)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
            archive.writestr("archive/data/0", bytes(2**27))
    else:
        text = json.dumps({f"k{i}": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for i in range(10**5)})
        path.write_bytes(struct.pack("<Q", len(text)) + text.encode())
    return Case(path, f"bomb: {kind}")


def warm(folder: Path) -> Case:
    torch.save(dict(weights_of("motion")), folder / "a.ckpt")
    read(Case(folder / "a.ckpt", ""))
    path = folder / "a.safetensors"
    path.write_bytes(save(weights_of("harivo"), header_of("harivo", weights_of("harivo"))))
    return Case(path, "")


def read(case: Case) -> checkpoint.Checkpoint:
    return checkpoint.load(case.path, expect=tuple(CONFIGS))


def is_right(case: Case, value: object) -> bool:
    """Ours has a digest, so it can only be what was written; other files are what another reader finds in them."""
    assert isinstance(value, checkpoint.Checkpoint)
    if value.layout == checkpoint.FORMAT and "digest" in value.header and value.header["digest"]:
        written = digest_of(value.weights) == case.expected
        return written and json.loads(value.header["config"]) == value.config
    return value.layout != checkpoint.FORMAT or case.label.split(": ")[1] in ("digest", "config", "nothing", "value")


KIND = Kind("weights", make, read, is_right, (checkpoint.CheckpointError,), warm)
