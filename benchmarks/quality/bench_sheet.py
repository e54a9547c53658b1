"""Held-out prompts drawn by the bundled models: the moving picture of the README, a contact sheet, or a banner.

    python3 scripts/dev.py bench sheet
    python3 scripts/dev.py bench sheet --prompts 10 --output sheet.jpg
    python3 scripts/dev.py bench sheet --prompts 7 --output docs/banner.png

A .webp plays the clips side by side, each above its prompt; a .jpg has a row for each prompt with eight of its sixteen
frames; a .png is the banner of the registry. The prompts are the first ones of the evaluation set and the seeds are 0,
1, 2 and so on: no clip is chosen for its looks.
"""

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from ...evaluation.judges.video_judge import FRAMES
from ...evaluation.scores.report import ROOT
from ...training.ablations.jobs import MOTIONS
from ...training.data import sprites
from ..common.pocket_host import PocketHost
from ..common.report import finish

SHOWN, TILE, CAPTION = 8, 128, 22
ACROSS, CELL, TEXT, GAP, FPS = 4, 192, 54, 8, 8
BANNER = (1400, 600)  # 21:9, as the registry shows it
INK, PAPER = "#dfe3ff", "#10142e"
Clips = list[tuple[str, Tensor]]  # prompt, frames (FRAMES, 3, 64, 64) in 0..1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("docs/prompts.webp"))
    args = parser.parse_args()
    target = ROOT / args.output  # an absolute path stays as it is
    write = {".jpg": write_sheet, ".webp": write_moving, ".png": write_banner}.get(target.suffix)
    if write is None:
        parser.error(f"--output {args.output}: the name must end in .jpg, .webp or .png")
    write(clips_of(args.prompts), target)
    print(target)
    finish("sheet", {"prompts": args.prompts, "bytes": target.stat().st_size})


def clips_of(prompts: int) -> Clips:
    host, clips = PocketHost(), sprites.held_out(prompts, motions=MOTIONS)
    model, texts = host.motion(frames=FRAMES), [sprites.caption(clip) for clip in clips]
    return [
        (text, host.decode(host.sample(model, [text], frames=FRAMES, seed=seed))) for seed, text in enumerate(texts)
    ]


def write_sheet(clips: Clips, target: Path) -> None:
    sheet = Image.new("RGB", (SHOWN * TILE, len(clips) * (TILE + CAPTION)), "white")
    for row, (text, frames) in enumerate(clips):
        top = row * (TILE + CAPTION)
        ImageDraw.Draw(sheet).text((4, top + 5), text, fill="black", font_size=13)
        for column, frame in enumerate(frames[:: FRAMES // SHOWN]):
            sheet.paste(enlarged(frame, TILE), (column * TILE, top + CAPTION))
    sheet.save(target, quality=88)


def write_moving(clips: Clips, target: Path) -> None:
    """An animated WebP that repeats: clips in rows of four, each above its prompt."""
    pages = [page(clips, number) for number in range(FRAMES)]
    pages[0].save(target, save_all=True, append_images=pages[1:], duration=1000 // FPS, loop=0, quality=82, method=6)


def page(clips: Clips, number: int) -> Image.Image:
    rows = -(-len(clips) // ACROSS)
    picture = Image.new("RGB", (ACROSS * (CELL + GAP) + GAP, rows * (CELL + TEXT + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    for place, (text, frames) in enumerate(clips):
        left, top = GAP + place % ACROSS * (CELL + GAP), GAP + place // ACROSS * (CELL + TEXT + GAP)
        picture.paste(enlarged(frames[number], CELL), (left, top))
        draw.text((left + 2, top + CELL + 4), textwrap.fill(text, 30), fill=INK, font_size=13, spacing=2)
    return picture


def write_banner(clips: Clips, target: Path) -> None:
    """Frames of all clips, early and late ones, in three rows that fill the picture; no text."""
    side = BANNER[1] // 3
    picture = Image.new("RGB", BANNER, PAPER)
    for place in range(3 * (BANNER[0] // side)):
        row, column = divmod(place, BANNER[0] // side)
        _, frames = clips[(place + row * 3) % len(clips)]
        picture.paste(enlarged(frames[(column * 2 + row) % FRAMES], side), (column * side, row * side))
    picture.save(target, optimize=True)


def enlarged(frame: Tensor, side: int) -> Image.Image:
    pixels = (frame.permute(1, 2, 0) * 255).round().byte().numpy()
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


if __name__ == "__main__":
    main()
