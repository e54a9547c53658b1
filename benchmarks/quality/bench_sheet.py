"""A contact sheet of held-out prompts: one row a prompt, eight of its sixteen frames, drawn by the bundled models.

    python3 scripts/dev.py bench sheet --output docs/contact_sheet.jpg

No picking: the first prompts of the evaluation set, seeds 0, 1, 2...
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("docs/contact_sheet.jpg"))
    args = parser.parse_args()
    host, clips = PocketHost(), sprites.held_out(args.prompts, motions=MOTIONS)
    model = host.motion(frames=FRAMES)
    sheet = Image.new("RGB", (SHOWN * TILE, len(clips) * (TILE + CAPTION)), "white")
    for row, clip in enumerate(clips):
        text = sprites.caption(clip)
        draw_row(sheet, row, text, host.decode(host.sample(model, [text], frames=FRAMES, seed=row)))
    target = ROOT / args.output  # a path of its own root stays as it is
    sheet.save(target, quality=88)
    print(target)
    finish("sheet", {"prompts": len(clips)})


def draw_row(sheet: Image.Image, row: int, text: str, frames: Tensor) -> None:
    top = row * (TILE + CAPTION)
    ImageDraw.Draw(sheet).text((4, top + 5), text, fill="black", font_size=13)
    for column, frame in enumerate(frames[:: FRAMES // SHOWN]):
        pixels = (frame.permute(1, 2, 0) * 255).round().byte().numpy()
        picture = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BICUBIC)
        sheet.paste(picture, (column * TILE, top + CAPTION))


if __name__ == "__main__":
    main()
