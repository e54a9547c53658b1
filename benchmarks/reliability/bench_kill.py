"""Does a killed render go on to the same frames? A real ComfyUI server is killed (SIGKILL) at random moments of a
render, started again, and given the same prompt.

--workflow: a bundled one with Long Video, Staged Video or Autoregressive Video, of which that node is run and what it
is made from. A clip is a stage of a Staged Video, a frame of an Autoregressive Video.

Keys: `workflow`; `kills`; `identical`: after how many of them all frames and latents were those of an undisturbed
render; `max_clips_redone`: by one kill.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import av

from ...evaluation.scores.report import ROOT
from ..common.report import finish

sys.path.insert(0, str(ROOT / "scripts"))

from devkit import workflow
from devkit.client import Client
from devkit.server import Server, spare_threads

LONG, STAGED = "StillMotion_LongVideo", "StillMotion_StagedVideo"
ROLL = "StillMotion_AutoregressiveVideo"  # its clips are single frames


def start(base: Path) -> Server:
    comfyui = Path(os.environ["COMFYUI_DIR"])
    python = Path(os.environ.get("COMFYUI_PYTHON") or sys.executable)
    server = Server(comfyui, python, base, environment=spare_threads())
    server.start()
    server.check_pack()
    return server


def prompt_of(args: argparse.Namespace) -> dict:
    """What of the workflow makes the video, with as many clips, frames of each and steps as asked for."""
    prompt = workflow.load(args.workflow)
    kinds = {node["class_type"] for node in prompt.values()} & {LONG, STAGED, ROLL}
    if len(kinds) != 1:
        raise SystemExit(f"{args.workflow} has no node that renders a job, or several kinds; take vidrd_long_video")
    (kind,) = kinds
    prompt = workflow.up_to(prompt, kind)
    (video,) = [node["inputs"] for node in prompt.values() if node["class_type"] == kind]
    wanted = {
        "frames" if kind == ROLL else "clips": args.clips,
        "steps": args.steps,
        "overlap": min(4, args.frames // 2),
    }
    video |= {name: value for name, value in wanted.items() if name in video}
    if kind == STAGED:
        video["prompts"] = "\n".join(islice(cycle(video["prompts"].splitlines()), args.clips))
    return prompt if kind == ROLL else workflow.adapt(prompt, frames=args.frames)


def job_of(base: Path) -> Path:
    """The folder of the only job."""
    (manifest,) = (base / "output").glob("*/*/manifest.json")
    return manifest.parent


def clear(base: Path) -> None:
    for folder in (base / "output").iterdir():
        shutil.rmtree(folder, ignore_errors=True)


def digest(folder: Path) -> str:
    """Of all decoded frames, and of the files of the latents."""
    found = hashlib.sha256()
    (video,) = folder.glob("*.mp4")
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            found.update(frame.to_ndarray(format="rgb24").tobytes())
    for path in sorted(folder.glob("clips/*/*.safetensors")):
        found.update(path.read_bytes())
    return found.hexdigest()


def sampled(folder: Path) -> int:
    """Clips that were begun, again or for the first time."""
    return sum(" is sampled" in line for line in (folder / "log.txt").read_text(encoding="utf-8").splitlines())


def kill(server: Server) -> None:
    """The server and its guard at once, without a word."""
    assert server.process is not None
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()


def trial(server: Server, base: Path, prompt: dict, seconds: float) -> tuple[Server, int]:
    """Queue, kill after so many seconds, restart, queue again to the end. The new server, and how many clips were
    begun."""
    clear(base)
    Client(server.url).submit(prompt)
    time.sleep(seconds)
    kill(server)
    server = start(base)
    Client(server.url).run(prompt, timeout=3600).check()
    return server, sampled(job_of(base))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workflow", default="vidrd_long_video", help="a bundled one that renders a job")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--clips", type=int, default=12, help="of the video; stages, or frames of ART-V")
    parser.add_argument("--frames", type=int, default=8, help="of a clip")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    chance, identical, redone = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        prompt = prompt_of(args)
        server = start(base)
        try:
            Client(server.url).run(prompt, timeout=3600).check()  # warms up
            clear(base)
            began = time.monotonic()
            Client(server.url).run(prompt, timeout=3600).check()
            duration, expected, clips = time.monotonic() - began, digest(job_of(base)), sampled(job_of(base))
            print(f"undisturbed: {clips} clips, {duration:.1f} s", flush=True)
            for i in range(args.kills):
                seconds = chance.uniform(0, duration)
                server, begun = trial(server, base, prompt, seconds)
                same = digest(job_of(base)) == expected
                identical, redone = identical + same, max(redone, begun - clips)
                print(f"kill {i + 1} after {seconds:.1f} s: identical {same}, {begun - clips} redone", flush=True)
        finally:
            server.stop(gentle=False)
    figures = {"workflow": args.workflow, "kills": args.kills, "identical": identical, "max_clips_redone": redone}
    finish("kill", figures)


if __name__ == "__main__":
    main()
