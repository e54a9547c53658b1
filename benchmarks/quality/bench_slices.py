"""x-t slices with and without each part of the bundled HARIVO model, switched at sampling; same prompts and noise.

    python3 scripts/dev.py bench slices --output docs/harivo_slices.jpg

One row of images for each set of parts. Each image shows a line of pixels through the sprite, along its motion, over
time. The prompts are the first ones of the evaluation set, not selected. The model was trained once, with all parts;
the effect of each part on training is measured by `ablate harivo`.
"""

import argparse
from pathlib import Path
from typing import Any

from ...evaluation.drawing.plots import contact_sheet
from ...evaluation.drawing.views import through_sprite
from ...evaluation.judges.judge import load_judge
from ...evaluation.judges.video_judge import FRAMES
from ...evaluation.scores.clips import frame_difference
from ...evaluation.scores.report import ROOT
from ...model_patches.harivo.mitigating import Config
from ...training.ablations.jobs import MOTIONS
from ...training.data import sprites
from ..common.pocket_host import JUDGE, POCKET, PocketHost
from ..common.report import finish

HARIVO = POCKET.with_name("harivo.safetensors")
OFF = {"strength": 0.0, "mapping": 0.0, "tokens": 0.0}
ROWS: dict[str, dict[str, float]] = {
    "no parts": OFF,
    "temporal": OFF | {"strength": 1.0},
    "+ mapping": OFF | {"strength": 1.0, "mapping": 1.0},
    "+ tokens": {},
    "+ MG": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("docs/harivo_slices.jpg"))
    args = parser.parse_args()
    host, judge, clips = PocketHost(), load_judge(JUDGE), sprites.held_out(args.prompts, motions=MOTIONS)
    from ...model_patches.comfy_host.guidance.mitigating import apply_mitigating_gradient

    tiles, figures = [], {}
    for name, parts in ROWS.items():
        model: Any = host.motion(HARIVO, frames=FRAMES, **parts)
        if name == "+ MG":
            model, _ = apply_mitigating_gradient(model, Config(), frames=FRAMES)
        videos = [
            host.decode(host.sample(model, [sprites.caption(clip)], frames=FRAMES, seed=seed))
            for seed, clip in enumerate(clips)
        ]
        figures[name] = round(sum(map(frame_difference, videos)) / len(videos), 5)
        print(f"{name}: mean difference of adjacent frames {figures[name]}", flush=True)
        tiles.append([through_sprite(video, clip.motion, judge) for video, clip in zip(videos, clips, strict=True)])
    heads = ["", *(f"{clip.sprite.shape}, {clip.motion}" for clip in clips)]
    text = "a line of pixels through the sprite (across), over time (downwards)"
    sheet = contact_sheet(tiles, list(ROWS), heads, title="Parts of HARIVO, x-t slices", text=text)
    target = ROOT / args.output  # an absolute path stays as it is
    sheet.save(target, quality=88)
    print(target)
    finish("slices", {"difference": figures, "prompts": len(clips)})


if __name__ == "__main__":
    main()
