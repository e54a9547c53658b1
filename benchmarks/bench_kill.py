"""Does a killed render go on to the same frames? A real ComfyUI server is killed (SIGKILL) at random moments of a
render, started again, and given the same prompt.

--workflow: `vidrd_long_video`; `artv`, an Autoregressive Video on the pocket, whose clips are single frames (with a
fresh ART-V file while none is bundled); or any other bundled workflow that renders one job.

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
from pathlib import Path
from typing import Any

import av

from .pocket_host import artv_file
from .report import ROOT, finish

sys.path.insert(0, str(ROOT / "scripts"))

from devkit import workflow
from devkit.client import Client
from devkit.server import Server, spare_threads

ARTV = "artv"
COUNT = {"StillMotion_LongVideo": "clips", "StillMotion_AutoregressiveVideo": "frames"}  # which input tells how many


def start(base: Path) -> Server:
    comfyui = Path(os.environ["COMFYUI_DIR"])
    python = Path(os.environ.get("COMFYUI_PYTHON") or sys.executable)
    server = Server(comfyui, python, base, environment=spare_threads())
    server.start()
    server.check_pack()
    return server


def prompt_of(args: argparse.Namespace, base: Path) -> dict:
    """The graph, with as many clips and steps as asked for where it has such inputs."""
    if args.workflow == ARTV:
        prompt = autoregressive(base)
    else:
        prompt = workflow.load(args.workflow)
        if any(workflow.title(prompt, number) == "Frames" for number in prompt):
            prompt = workflow.adapt(prompt, frames=args.frames)
    for node in prompt.values():
        given = node["inputs"]
        if count := COUNT.get(node["class_type"]):
            given[count] = args.clips
        changes = {"steps": args.steps, "overlap": min(4, args.frames // 2)}
        given |= {name: value for name, value in changes.items() if name in given}
    return prompt


def autoregressive(base: Path) -> dict:
    """Load Pocket Stable Diffusion, Load ART-V Model, two texts and Autoregressive Video."""
    folder = base / "models" / "stillmotion"
    folder.mkdir(parents=True, exist_ok=True)
    path = artv_file(folder)
    name = path.name if path.parent == folder else f"pocket/{path.name}"

    def node(kind: str, **inputs: Any) -> dict:
        return {"class_type": kind, "inputs": inputs}

    sockets = {"model": ["1", 0], "artv": ["2", 0], "vae": ["1", 2], "positive": ["3", 0], "negative": ["4", 0]}
    widgets: dict[str, Any] = {"name": ARTV, "seed": 7, "frames": 16, "steps": 4, "width": 64, "height": 64, "fps": 8}
    widgets |= {"text_weight": 6.5, "reference_weight": 0.25, "anchor_weight": 0.25, "t_test": 200, "fit": "crop"}
    widgets |= {"sampler_name": "dpmpp_2s_ancestral", "scheduler": "normal", "format": "h264-mp4", "enlarge": 8}
    widgets |= {"keep": "everything"}
    return {
        "1": node("StillMotion_LoadPocket"),
        "2": node("StillMotion_LoadArtvModel", artv_name=name),
        "3": node("CLIPTextEncode", clip=["1", 1], text="a yellow star moving in a circle in the night sky"),
        "4": node("CLIPTextEncode", clip=["1", 1], text=""),
        "5": node("StillMotion_AutoregressiveVideo", **sockets, **widgets),
    }


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
    parser.add_argument("--workflow", default="vidrd_long_video", help=f"{ARTV}, {', '.join(workflow.names())}")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--clips", type=int, default=12, help="of the video; for artv its frames")
    parser.add_argument("--frames", type=int, default=8, help="of a clip")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    chance, identical, redone = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        prompt = prompt_of(args, base)
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
