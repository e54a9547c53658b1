"""The temporal layers of a motion or HARIVO file in other people's layouts, bit for bit."""

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

    stillmotion: our motion file. animatediff: a plain .safetensors in AnimateDiff's keys. diffusers: a folder for
    MotionAdapter.from_pretrained. The mapping network and the frame-wise tokens exist in the first layout's HARIVO file
    only, and stay behind.
    """
    file = checkpoint.load(path, expect=systems.with_layers(systems.MOTION))
    layers = checkpoint.motion_of(file)
    config, weights = MotionConfig.from_dict(layers.config), layers.weights
    exported = {id(weight) for weight in weights.values()}
    others = sorted({name.partition(".")[0] for name, weight in file.weights.items() if id(weight) not in exported})
    if others:
        log.info("%s stays behind: only the temporal layers have a place in a motion file", " and ".join(others))
    if layout == "stillmotion":
        kept = {k: v for k, v in file.header.items() if k not in ("format", "system", "config")}
        checkpoint.save(out, system=systems.MOTION, config=config.to_dict(), weights=weights, header=kept)
    elif layout == "animatediff":
        _animatediff(weights, out)
    elif layout == "diffusers":
        _diffusers(config, weights, out)
    else:
        raise ConfigError(f"there is no layout {layout!r}; use one of {', '.join(LAYOUTS)}")
    log.info("%s: the temporal layers of %s, %s's layout", out, path.name, layout)
    return out


def _animatediff(weights: dict[str, Tensor], out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: an AnimateDiff file is one .safetensors")
    write_tensors(weights, out, {"format": "pt"})


def _diffusers(config: MotionConfig, weights: dict[str, Tensor], out: Path) -> None:
    if out.suffix:
        raise ConfigError(f"--out {out}: diffusers' layout is a folder")
    if config.group_norm == "per_frame":
        log.warning(
            "these layers were trained with GroupNorm over one frame, diffusers computes it over the clip: there the "
            'videos will differ. Train with model.group_norm = "per_clip" for an exact copy'
        )
    adapter: Any = MotionAdapter(
        block_out_channels=config.block_channels,
        motion_layers_per_block=config.layers_per_block,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=config.heads,
        motion_max_seq_length=config.max_frames,
        use_motion_mid_block=config.mid_block,
    )
    named = layouts.to_diffusers(weights)
    adapter.to(next(iter(named.values())).dtype).load_state_dict(named)
    adapter.save_pretrained(out)
