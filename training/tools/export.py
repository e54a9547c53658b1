"""Exports the temporal layers of a motion or HARIVO file in other layouts, with bit-identical weights."""

import logging
from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_motion_model import MotionAdapter
from torch import Tensor

from ...model_patches import checkpoint, layouts, systems
from ...model_patches.core.config import MotionConfig
from ...model_patches.files import write_tensors
from ..plans.errors import ConfigError

log = logging.getLogger(__name__)
LAYOUTS = ("stillmotion", "animatediff", "diffusers")


def export(path: Path, layout: str, out: Path) -> Path:
    """Write the temporal layers of `path` to `out`.

    stillmotion: our motion file. animatediff: a plain .safetensors file with AnimateDiff's keys. diffusers: a folder
    for MotionAdapter.from_pretrained. Only a HARIVO file can store a mapping network and frame-wise tokens, so they are
    not exported.
    """
    file = checkpoint.load(path, expect=systems.with_layers(systems.MOTION))
    layers = checkpoint.motion_of(file)
    config, weights = MotionConfig.from_dict(layers.config), layers.weights
    exported_ids = {id(weight) for weight in weights.values()}
    others = sorted({name.partition(".")[0] for name, weight in file.weights.items() if id(weight) not in exported_ids})
    if others:
        log.info("not exported: %s; a motion file can only store temporal layers", " and ".join(others))
    if layout == "stillmotion":
        header = {k: v for k, v in file.header.items() if k not in ("format", "system", "config")}
        checkpoint.save(out, system=systems.MOTION, config=config.to_dict(), weights=weights, header=header)
    elif layout == "animatediff":
        _animatediff(weights, out)
    elif layout == "diffusers":
        _diffusers(config, weights, out)
    else:
        raise ConfigError(f"there is no layout {layout!r}; use one of {', '.join(LAYOUTS)}")
    log.info("wrote %s: the temporal layers of %s in the layout %s", out, path.name, layout)
    return out


def _animatediff(weights: dict[str, Tensor], out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: the layout animatediff needs a .safetensors file")
    write_tensors(weights, out, {"format": "pt"})


def _diffusers(config: MotionConfig, weights: dict[str, Tensor], out: Path) -> None:
    if out.suffix:
        raise ConfigError(f"--out {out}: the layout diffusers needs a folder")
    if config.group_norm == "per_frame":
        log.warning(
            "these layers were trained with GroupNorm over single frames, but diffusers computes it over the clip, so "
            'that its videos will differ. Train with model.group_norm = "per_clip" to get the same videos'
        )
    adapter: Any = MotionAdapter(
        block_out_channels=config.block_channels,
        motion_layers_per_block=config.layers_per_block,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=config.heads,
        motion_max_seq_length=config.max_frames,
        use_motion_mid_block=config.mid_block,
    )
    state = layouts.to_diffusers(weights)
    adapter.to(next(iter(state.values())).dtype).load_state_dict(state)
    adapter.save_pretrained(out)
