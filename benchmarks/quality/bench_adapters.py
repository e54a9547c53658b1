"""Do the pocket's LoRA and ControlNet work? Held-out prompts, DDIM 25 steps, CFG 7.5, same seeds.

Single images: `glow` (share of images with the LoRA's style) and `glow_without` (the same without the LoRA);
`lora_colour`, `lora_shape`, `lora_background` (shares of images with the LoRA that match the prompt, by the judge).
`iou_sketch`, `iou_frame`, `iou_linear`: overlap (IoU) of the generated sprite, by the judge's mask, with the sprite
that the hint shows; the hint is the sprite's outline, the edges of a whole frame, or the outline with linear betas.
`iou_without` is the overlap without a hint, `iou_ceiling` that of the rendered frame after the autoencoder.
Clips of 16 frames, with the motion model: `clip_glow` (share of frames), `clip_all` (IoU, hints on all frames),
`ends` and `between` (IoU of the first and last frame, and of the other frames, with hints on the first and last),
`ends_without` and `between_without` (the same without hints), `both_glow` and `both_ends` (with LoRA and those hints).
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from ...evaluation.judges.judge import load_judge
from ...training.data import sprites, styles
from ...training.pocket.control import edges
from ..common.pocket_host import JUDGE, PocketHost
from ..common.report import finish
from .bench_pocket import accuracy

FRAMES = 16
ENDS = "0, -1"


def overlap(judge, pictures: Tensor, truth: Tensor) -> Tensor:
    """IoU (n,) of the judge's masks of images with the coverage of sprites (n, 1, 64, 64)."""
    mask, target = judge(pictures).mask > 0, F.avg_pool2d(truth, 2) > 0.5
    return (mask & target).sum((1, 2, 3)) / (mask | target).sum((1, 2, 3))


def glows(pictures: Tensor, clips: list[sprites.Clip], frames: int = 1) -> float:
    """Share of the images that show the style."""
    colours = [clip.sprite.colour for clip in clips for _ in range(frames)]
    return (styles.glow(pictures, colours) > styles.GLOWS).float().mean().item()


class Pictures:
    """Single images of held-out prompts."""

    def __init__(self, host: PocketHost, judge, clips: list[sprites.Clip]) -> None:
        self.host, self.judge, self.clips = host, judge, clips
        times = [i % FRAMES / (FRAMES - 1) for i in range(len(clips))]
        self.truth = torch.cat([sprites.mask(c, [t]) for c, t in zip(clips, times, strict=True)])
        self.rendered = torch.cat([sprites.render(c, [t]) for c, t in zip(clips, times, strict=True)])

    def draw(self, model=None, hints: Tensor | None = None) -> Tensor:
        control = None if hints is None else self.host.control(hints)
        texts = [sprites.caption(c) for c in self.clips]
        return self.host.decode(self.host.sample(model or self.host.model, texts, control=control))

    def iou(self, pictures: Tensor) -> float:
        return overlap(self.judge, pictures, self.truth).mean().item()

    def figures(self) -> dict[str, float]:
        from ...model_patches.comfy_host.base.betas import apply_betas

        plain, styled = self.draw(), self.draw(self.host.lora())
        linear = apply_betas(self.host.model, "linear", 0.00085, 0.012)
        sketch, frame_edges = edges(self.truth), edges(self.rendered)
        with torch.inference_mode():
            reconstruction = self.host.decode(self.host.vae.encode(self.rendered.permute(0, 2, 3, 1)))
        shares = {f"lora_{k}": v for k, v in accuracy(self.judge, styled, self.clips).items()}
        ious = {
            "iou_sketch": self.draw(hints=sketch),
            "iou_frame": self.draw(hints=frame_edges),
            "iou_linear": self.draw(linear, sketch),
            "iou_without": plain,
            "iou_ceiling": reconstruction,
        }
        glow = {"glow": glows(styled, self.clips), "glow_without": glows(plain, self.clips)}
        return glow | shares | {name: self.iou(pictures) for name, pictures in ious.items()}


class Clips:
    """Clips of held-out prompts with a moving sprite."""

    def __init__(self, host: PocketHost, judge, clips: list[sprites.Clip]) -> None:
        self.host, self.judge, self.clips = host, judge, clips
        self.truth = [sprites.mask(c, sprites.frame_times(FRAMES)) for c in clips]

    def draw(self, model, frames: str = "") -> Tensor:
        """The frames of all clips in order, (clips * 16, 3, 64, 64); `frames`: the frames that get a hint."""
        clips = []
        for i, clip in enumerate(self.clips):
            hints = edges(self.truth[i] if frames == "all" else self.truth[i][[0, -1]])
            control = self.host.control(hints, frames, count=FRAMES) if frames else None
            texts = [sprites.caption(clip)]
            latents = self.host.sample(model, texts, frames=FRAMES, seed=i, control=control)
            clips.append(self.host.decode(latents))
        return torch.cat(clips)

    def iou(self, pictures: Tensor) -> dict[str, float]:
        ious = overlap(self.judge, pictures, torch.cat(self.truth)).view(-1, FRAMES)
        return {"ends": ious[:, [0, -1]].mean().item(), "between": ious[:, 1:-1].mean().item()}

    def figures(self) -> dict[str, float]:
        moving = self.host.motion()
        styled = self.host.lora(model=moving)
        without, both = self.iou(self.draw(moving)), self.draw(styled, ENDS)
        return {
            "clip_glow": glows(self.draw(styled), self.clips, FRAMES),
            "clip_all": overlap(self.judge, self.draw(moving, "all"), torch.cat(self.truth)).mean().item(),
            **self.iou(self.draw(moving, ENDS)),
            **{f"{name}_without": value for name, value in without.items()},
            "both_glow": glows(both, self.clips, FRAMES),
            "both_ends": self.iou(both)["ends"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=48, help="number of single images")
    parser.add_argument("--clips", type=int, default=4, help="number of clips")
    args = parser.parse_args()
    host, judge, start_time = PocketHost(), load_judge(JUDGE), time.monotonic()
    moving = sprites.held_out(args.clips, motions=("right", "left", "up", "down"))
    figures: dict[str, float] = {"prompts": args.prompts, "clips": args.clips}
    for name, part in (
        ("pictures", Pictures(host, judge, sprites.held_out(args.prompts))),
        ("clips", Clips(host, judge, moving)),
    ):
        figures |= part.figures()
        print(f"{name}, {time.monotonic() - start_time:.0f} s: {figures}", flush=True)
    finish("adapters", {k: round(v, 4) for k, v in figures.items()})


if __name__ == "__main__":
    main()
