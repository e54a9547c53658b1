"""A cheap render: each clip is a random walk that begins at the end of the previous one. As a program, it is killed.

    python toy.py ROOT CLIPS KILLS SEED

renders in child processes. KILLS of them are killed (SIGKILL) at random moments. For each child it prints one line:
how it ended, and the clips that it sampled.
"""

import os
import random
import signal
import sys
import time
from fractions import Fraction
from pathlib import Path

import torch

from stillmotion.rendering.formats import check_format
from stillmotion.rendering.job import open_job
from stillmotion.rendering.loop import Output, Watch, Work, render

FRAMES, SIZE = 6, 16
IDENTITY = {"seed": 1, "graph": {"model": "a"}}


def output(name="h264-mp4", **changes):
    kind = check_format(name, SIZE, SIZE)
    return Output(**{"kind": kind, "fps": Fraction(8), "frames": FRAMES, "metadata": {"prompt": {"1": {}}}} | changes)


class Toy:
    """Counts its calls. delay: seconds per step. inputs: the text of each clip."""

    def __init__(self, delay=0.0, note=lambda clip: None, inputs=lambda clip: ""):
        self.delay, self.note, self.inputs = delay, note, inputs
        self.sampled, self.decoded = [], 0

    def sample(self, clip, take, before, step):
        self.note(clip)
        self.sampled.append((clip, take))
        seed = 97 * clip + take + sum(map(ord, self.inputs(clip)))
        walk = torch.randn(FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        for k in range(3):
            time.sleep(self.delay)
            step((k + 1) / 3)
        latents = walk.cumsum(0) * 0.3 + (0 if before is None else before["end"])
        return latents, {"end": latents[-1].clone()}

    def decode(self, latents):
        for part in latents.split(4):
            time.sleep(self.delay)
            self.decoded += len(part)
            yield (part.sigmoid() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def work(self):
        return Work(self.sample, self.decode, self.inputs)


def run(root, clips, *, toy=None, identity=IDENTITY, name="toy", kind="h264-mp4", **options):
    """(folder of the job, path of the video, the watch with the remarks)."""
    watch = Heard()
    with open_job(root, name, identity) as (job, remark):
        watch.remark(remark)
        path = render(job, clips, (toy or Toy()).work(), output(kind), watch=watch, **options)
    return job.folder, path, watch


class Heard(Watch):
    def __init__(self):
        self.remarks, self.told = [], []

    def remark(self, text):
        self.remarks.append(text)

    def progress(self, progress):
        self.told.append(progress)


def main(root, clips, kills, seed):
    torch.set_num_threads(1)
    chance = random.Random(seed)
    while True:
        clips_sampled, signalled = one_child(root, clips, chance.uniform(0.005, 0.2) if kills else None)
        sys.stdout.write(f"{'killed' if signalled else 'ended'} {clips_sampled}\n")
        if not signalled:
            return
        kills -= 1


def one_child(root, clips, seconds):
    """The clips that a child sampled, and whether it was killed, which happens after `seconds` unless it has ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        run(root, clips, toy=Toy(0.004, lambda clip: os.write(writing, b"%d " % clip)))
        os._exit(0)
    os.close(writing)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read().decode(), os.WIFSIGNALED(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
