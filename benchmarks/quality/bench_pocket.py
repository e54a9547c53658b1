"""Does the pocket model follow its prompts? Held-out prompts, DDIM 25 steps, CFG 7.5, judged by a separate classifier.

Keys: `colour`, `background`, `shape` (shares of images that match the prompt), `judge` (the classifier's own lowest
accuracy on held-out rendered frames), `ceiling_shape` (its shape accuracy on these frames after the autoencoder).
"""

import argparse
import time
from pathlib import Path

import torch

from ...evaluation.judges.judge import LABELS, load_judge
from ...training.data.worlds import SPRITES, World, named
from ...training.pocket.judge import MIN_VISIBLE, label_indices
from ..common.pocket_host import JUDGE, POCKET, PocketHost
from ..common.report import finish


def accuracy(judge, pictures: torch.Tensor, clips: list, world: World = SPRITES) -> dict[str, float]:
    verdict = judge(pictures)
    truth = torch.tensor([label_indices(c, world) for c in clips])
    return {name: (verdict.labels(name) == truth[:, i]).float().mean().item() for i, name in enumerate(LABELS)}


def visible_time(world: World, clip, frame: int) -> float:
    """The time of a frame, or of the next one in which the clip's subject is visible."""
    times = [(frame + i) % 16 / 15 for i in range(16)]
    return next(
        (t for t, share in zip(times, world.visible(clip, times), strict=True) if share >= MIN_VISIBLE), times[0]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    for name, path in (("pocket", POCKET), ("judge", JUDGE)):
        parser.add_argument(f"--{name}", type=Path, default=path)
    args = parser.parse_args()
    host, judge = PocketHost(args.pocket), load_judge(args.judge)
    world = named(judge.world)
    clips = world.held_out(args.prompts)
    real = torch.cat([world.render(c, [visible_time(world, c, i % 16)]) for i, c in enumerate(clips)])
    with torch.inference_mode():
        reconstruction = host.decode(host.vae.encode(real.permute(0, 2, 3, 1)))
    truth, ceiling = accuracy(judge, real, clips, world), accuracy(judge, reconstruction, clips, world)
    start_time, pictures = time.monotonic(), []
    for first in range(0, len(clips), args.batch):
        part = clips[first : first + args.batch]
        texts = [world.caption(c) for c in part]
        pictures.append(host.decode(host.sample(host.model, texts, seed=args.seed + first)))
        print(f"{first + len(part)} of {len(clips)} images, {time.monotonic() - start_time:.0f} s", flush=True)
    scores = accuracy(judge, torch.cat(pictures), clips, world)
    print("judge on rendered frames  ", truth)
    print("judge after autoencoder   ", ceiling)
    print("judge on generated        ", scores)
    figures = {**scores, "judge": min(truth.values()), "ceiling_shape": ceiling["shape"], "prompts": len(clips)}
    finish("pocket", {k: round(v, 4) for k, v in figures.items()})


if __name__ == "__main__":
    main()
