"""python -m stillmotion.training view WHAT: the views of the nodes as PNG files, for the bundled pocket model.

slice    a line of pixels of a video over time
noise    normality of independent noise, without and with a mapping network
mapping  the effect of a mapping network on mean and deviation over t
tokens   attention to the frame-wise tokens over the frames
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageSequence
from torch import Tensor

from ...evaluation.drawing import views
from ...evaluation.drawing.probes import mapping_shift
from ...evaluation.scores.statistics import normality
from ...model_patches.diffusers_host.harivo import attach
from ...model_patches.diffusers_host.pocket import Pocket, load_pocket
from ...model_patches.diffusers_host.views import token_attention
from ...model_patches.pocket import SCALE
from ..data import sprites
from ..pocket.text import Vocabulary
from ..systems.bases import BUNDLED_POCKET
from ..systems.loading import _part, levels_of, load_harivo

log = logging.getLogger(__name__)

PICTURES = (".gif", ".webp", ".png", ".apng")
NOISE_CLIPS = 200


def view(args: argparse.Namespace, tokenizer: Path | None) -> None:
    """Draw the view that `args` select. Raises ValueError when an argument is missing."""
    if args.file is None and args.what != "noise":
        raise ValueError(f"view {args.what} needs a file; give a video (slice) or a HARIVO file")
    picture = VIEWS[args.what](args, tokenizer)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.out)
    log.info("wrote %s", args.out)


def _slice(args: argparse.Namespace, _: object) -> Image.Image:
    frames = read_frames(args.file)
    log.info("%s", views.flicker_text(frames))
    return views.draw_xt_slice(frames, line=args.line, position=args.position)


def _noise(args: argparse.Namespace, _: object) -> Image.Image:
    g = torch.Generator().manual_seed(args.seed)
    clips = torch.randn(NOISE_CLIPS, args.frames, 4, 16, 16, generator=g)
    results = {"independent": normality(clips)}
    if args.file is not None:
        mapping = _part(load_harivo(args.file), "mapping", args.file)
        with torch.no_grad():
            results["after the mapping"] = normality(torch.stack([mapping(clip, args.frames) for clip in clips]))
    log.info("%s", views.normality_text(results))
    return views.draw_normality(results)


@torch.no_grad()
def _mapping(args: argparse.Namespace, _: object) -> Image.Image:
    model, pocket = load_harivo(args.file), load_pocket(BUNDLED_POCKET)
    mapping, levels = _part(model, "mapping", args.file), levels_of(model)
    latents = torch.cat([_latents(pocket, clip, args.frames) for clip in sprites.held_out(4)])
    steps = range(0, len(levels), 40)
    shifts = mapping_shift(mapping, latents, args.frames, alpha_bars=levels, timesteps=steps, seed=args.seed)
    return views.draw_mapping_shift(shifts)


@torch.no_grad()
def _tokens(args: argparse.Namespace, tokenizer: Path | None) -> Image.Image:
    if tokenizer is None:
        raise ValueError("view tokens needs CLIP's vocabulary; give its folder with --tokenizer DIR")
    model, pocket = load_harivo(args.file), load_pocket(BUNDLED_POCKET)
    _part(model, "tokens", args.file)
    handle, g = attach(pocket.unet, model), torch.Generator().manual_seed(args.seed)
    handle.frames = args.frames
    (clip,), level = sprites.held_out(1, first=args.seed), levels_of(model)[args.timestep]
    x0, text = _latents(pocket, clip, args.frames), args.prompt or sprites.caption(clip)
    x = level.sqrt() * x0 + (1 - level).sqrt() * torch.randn(x0.shape, generator=g)
    context = pocket.text(Vocabulary(tokenizer).stock([text])).last_hidden_state
    maps = token_attention(pocket.unet, x, args.timestep, context.expand(args.frames, -1, -1))
    return views.draw_token_attention(maps, timestep=args.timestep, text=text)


def _latents(pocket: Pocket, clip: sprites.Clip, frames: int) -> Tensor:
    """The scaled latents of a rendered clip, without noise: (f, 4, 16, 16)."""
    pictures = sprites.render(clip, sprites.frame_times(frames)) * 2 - 1
    moments: Any = pocket.vae.encode(pictures, return_dict=False)[0]
    return moments.mean * SCALE


VIEWS = {"slice": _slice, "noise": _noise, "mapping": _mapping, "tokens": _tokens}


def read_frames(path: Path) -> Tensor:
    """Frames (f, 3, h, w) in 0..1 of an animation (GIF, WebP, APNG) or a video file."""
    if path.suffix.lower() in PICTURES:
        with Image.open(path) as image:
            pictures = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
        return torch.cat([views.from_batch(views.as_batch(picture)) for picture in pictures])
    import av  # part of ComfyUI's requirements; not needed for animations

    with av.open(str(path)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames).movedim(-1, 1).float() / 255
