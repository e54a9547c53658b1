"""Does a killed render resume to the same frames? A real ComfyUI server is killed (SIGKILL) at random moments of a
render, restarted, and given the same prompt again.

--workflow: a bundled one with Long Video, Staged Video or Autoregressive Video; only that node and its inputs are run.
By default the kills are shared out among one of each. A clip is a stage of a Staged Video, or a frame of an
Autoregressive Video.

Keys: `workflow`; `kills`; `identical`: the number of kills after which all frames and latents equal those of an
uninterrupted render; `max_clips_redone`: the largest number of clips that one kill caused to be sampled again.
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
ROLL = "StillMotion_AutoregressiveVideo"  # a clip is a single frame here
WORKFLOWS = ("vidrd_long_video", "dreamvideo_stages", "artv_text_image_to_video")


def start(base: Path) -> Server:
    comfyui = Path(os.environ["COMFYUI_DIR"])
    python = Path(os.environ.get("COMFYUI_PYTHON") or sys.executable)
    server = Server(comfyui, python, base, environment=spare_threads())
    server.start()
    server.check_pack()
    return server


def prompt_of(args: argparse.Namespace) -> dict:
    """The part of the workflow that makes the video, with the numbers of clips, frames per clip and steps in `args`."""
    prompt = workflow.load(args.workflow)
    kinds = {node["class_type"] for node in prompt.values()} & {LONG, STAGED, ROLL}
    if len(kinds) != 1:
        raise SystemExit(
            f"{args.workflow} has no video node that renders a job, or several kinds of them; use vidrd_long_video"
        )
    (kind,) = kinds
    prompt = workflow.up_to(prompt, kind)
    inputs = {node["class_type"]: node["inputs"] for node in prompt.values()}
    inputs[kind]["steps"] = args.steps
    if kind == STAGED:
        texts = inputs["StillMotion_StagePrompts"]
        texts["text"] = "\n".join(islice(cycle(texts["text"].splitlines()), args.clips))
    else:
        inputs[kind]["frames" if kind == ROLL else "clips"] = args.clips
    if kind == LONG:
        inputs["StillMotion_ReuseOptions"]["overlap"] = min(4, args.frames // 2)
    return prompt if kind == ROLL else workflow.adapt(prompt, frames=args.frames)


def job_of(base: Path) -> Path:
    """The folder of the only job."""
    (manifest,) = (base / "output").glob("*/*/manifest.json")
    return manifest.parent


def clear(base: Path) -> None:
    for folder in (base / "output").iterdir():
        shutil.rmtree(folder, ignore_errors=True)


def digest(folder: Path) -> str:
    """A hash of all decoded frames and of the latent files."""
    value = hashlib.sha256()
    (video,) = folder.glob("*.mp4")
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            value.update(frame.to_ndarray(format="rgb24").tobytes())
    for path in sorted(folder.glob("clips/*/*.safetensors")):
        value.update(path.read_bytes())
    return value.hexdigest()


def clip_starts(folder: Path) -> int:
    """How often the sampling of a clip has started, counting repetitions."""
    return sum(" is sampled" in line for line in (folder / "log.txt").read_text(encoding="utf-8").splitlines())


def kill(server: Server) -> None:
    """Kill the server and its guard process at once with SIGKILL."""
    assert server.process is not None
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()


def trial(server: Server, base: Path, prompt: dict, seconds: float) -> tuple[Server, int]:
    """Queue, kill after `seconds`, restart, and queue again until the render is complete.

    Returns the new server and the number of clips whose sampling has started.
    """
    clear(base)
    Client(server.url).submit(prompt)
    time.sleep(seconds)
    kill(server)
    server = start(base)
    Client(server.url).run(prompt, timeout=3600).check()
    return server, clip_starts(job_of(base))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workflow", help="a bundled workflow that renders a job (default: one for each node)")
    parser.add_argument("--kills", type=int, default=30, help="number of kills, of all workflows together")
    parser.add_argument(
        "--clips", type=int, default=12, help="number of clips; of stages (Staged Video) or of frames (ART-V)"
    )
    parser.add_argument("--frames", type=int, default=8, help="frames per clip")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    args = parser.parse_args()
    workflows = [args.workflow] if args.workflow else list(WORKFLOWS)
    identical, redone = 0, 0
    for i, name in enumerate(workflows):
        args.workflow, kills = name, len(range(i, args.kills, len(workflows)))
        equal, again = measure(args, kills, random.Random(args.seed + i))
        identical, redone = identical + equal, max(redone, again)
    figures = {"workflow": ", ".join(workflows), "kills": args.kills}
    finish("kill", figures | {"identical": identical, "max_clips_redone": redone})


def measure(args: argparse.Namespace, kills: int, rng: random.Random) -> tuple[int, int]:
    """Kill one workflow so often; returns how many renders were identical, and the most clips that were redone."""
    identical, redone = 0, 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        prompt = prompt_of(args)
        server = start(base)
        try:
            Client(server.url).run(prompt, timeout=3600).check()  # warms up
            clear(base)
            start_time = time.monotonic()
            Client(server.url).run(prompt, timeout=3600).check()
            duration, expected, clips = time.monotonic() - start_time, digest(job_of(base)), clip_starts(job_of(base))
            print(f"{args.workflow}, uninterrupted: {clips} clips, {duration:.1f} s", flush=True)
            for i in range(kills):
                seconds = rng.uniform(0, duration)
                server, starts = trial(server, base, prompt, seconds)
                equal = digest(job_of(base)) == expected
                identical, redone = identical + equal, max(redone, starts - clips)
                print(f"kill {i + 1} after {seconds:.1f} s: identical {equal}, {starts - clips} redone", flush=True)
        finally:
            server.stop(gentle=False)
    return identical, redone


if __name__ == "__main__":
    main()
