"""The options of `python -m stillmotion.training eval`."""

import argparse
import sys
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", type=Path, help="folder of videos (.mp4, .mkv, .webm, .mov, .avi), or of folders of images")
    add(
        "--metrics",
        default="pocket",
        help="comma-separated: fvd, is, clipsim, fff_clip, fff_ssim, pocket (all pocket metrics whose inputs exist), "
        "pocket_fvd, pocket_is, pocket_clipsim, pocket_fff_clip, pocket_fff_ssim (default: pocket)",
    )
    add("--out", type=Path, required=True, help="folder for evaluation.json and evaluation.md")
    add("--reference", type=Path, help="folder of real videos, for FVD, and whose first frames are the images of FFF")
    add("--images", type=Path, help="folder with NAME.png, the image from which the video NAME was made, for FFF")
    add("--captions", type=Path, help='file of {"video": NAME, "caption": TEXT} lines (default: NAME.txt, or metadata)')
    add("--i3d", type=Path, help="FVD: i3d_torchscript.pt or i3d_pretrained_400.pt")
    add("--c3d", type=Path, help="IS: c3d_ucf101.pt, or a state dict of C3D")
    add("--clip", type=Path, help="CLIPSIM, FFF-CLIP: folder with a CLIP of transformers (papers: ViT-B/32)")
    add("--frames", type=int, default=16, help="number of frames used of each video, from the first one on")
    add("--stride", type=int, default=1, help="distance of these frames in the file")
    add("--reference-stride", type=int, default=1, help="the same for the reference")
    add("--limit", type=int, default=0, help="number of videos used of each folder, by name; 0: all")
    add("--fvd-protocol", default="", help="videogpt or styleganv (default: the one that matches the file of --i3d)")
    add("--splits", type=int, default=10, help="IS: number of equal parts whose scores are averaged")
    add("--few", action="store_true", help="allow FVD of fewer videos than features, which is much too high")
    add(
        "--skip-damaged",
        action="store_true",
        help="skip (and list) videos that cannot be read or are too short",
    )
    add("--batch", type=int, default=4, help="number of videos that are processed at once")
    add("--draws", type=int, default=200, help="number of bootstrap draws for the intervals")


def run(args: argparse.Namespace) -> None:
    """Run the verb. Raises SystemExit with a message when an input is missing."""
    from ...evaluation.networks.loading import MetricError
    from .command import Request, evaluate

    values = {name: getattr(args, name) for name in Request.__dataclass_fields__ if hasattr(args, name)}
    values["metrics"] = tuple(name.strip() for name in args.metrics.split(",") if name.strip())
    for name in ("frames", "stride", "reference_stride", "splits", "batch", "draws"):
        if values[name] < 1:
            raise SystemExit(f"--{name.replace('_', '-')} {values[name]}: give 1 or more")
    try:
        evaluate(Request(**values, command=("python -m stillmotion.training", *sys.argv[1:])))
    except MetricError as error:
        raise SystemExit(str(error)) from error
