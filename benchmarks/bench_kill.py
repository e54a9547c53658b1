"""Does a killed render go on to the same frames? A real ComfyUI server is killed (SIGKILL) at random moments of a
render of `vidrd_long_video`, started again, and given the same prompt.

Keys: `kills`; `identical`: after how many of them all frames and latents were those of an undisturbed render;
`max_clips_redone`: by one kill.
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

import av

from .report import ROOT, finish

sys.path.insert(0, str(ROOT / "scripts"))

from devkit import workflow
from devkit.client import Client
from devkit.server import Server, spare_threads


def start(base: Path) -> Server:
    comfyui = Path(os.environ["COMFYUI_DIR"])
    python = Path(os.environ.get("COMFYUI_PYTHON") or sys.executable)
    server = Server(comfyui, python, base, environment=spare_threads())
    server.start()
    server.check_pack()
    return server


def prompt_of(args: argparse.Namespace) -> dict:
    prompt = workflow.adapt(workflow.load("vidrd_long_video"), frames=args.frames)
    (node,) = [node for node in prompt.values() if node["class_type"] == "StillMotion_LongVideo"]
    node["inputs"] |= {"clips": args.clips, "steps": args.steps, "overlap": min(4, args.frames // 2)}
    return prompt


def job_of(base: Path) -> Path:
    (folder,) = (base / "output" / "long_video").iterdir()
    return folder


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
    """Queue, kill after so many seconds, restart, queue again to the end. The new server, and what was done twice."""
    shutil.rmtree(base / "output" / "long_video", ignore_errors=True)
    Client(server.url).submit(prompt)
    time.sleep(seconds)
    kill(server)
    server = start(base)
    Client(server.url).run(prompt, timeout=3600).check()
    return server, sampled(job_of(base))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--frames", type=int, default=8, help="of a clip")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    prompt, chance = prompt_of(args), random.Random(args.seed)
    identical, redone = 0, 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        server = start(base)
        try:
            Client(server.url).run(prompt, timeout=3600).check()  # warms up
            shutil.rmtree(base / "output" / "long_video")
            began = time.monotonic()
            Client(server.url).run(prompt, timeout=3600).check()
            duration, expected = time.monotonic() - began, digest(job_of(base))
            print(f"undisturbed: {duration:.1f} s", flush=True)
            for i in range(args.kills):
                seconds = chance.uniform(0, duration)
                server, begun = trial(server, base, prompt, seconds)
                same = digest(job_of(base)) == expected
                identical, redone = identical + same, max(redone, begun - args.clips)
                print(f"kill {i + 1} after {seconds:.1f} s: identical {same}, {begun - args.clips} redone", flush=True)
        finally:
            server.stop(gentle=False)
    finish("kill", {"kills": args.kills, "identical": identical, "max_clips_redone": redone})


if __name__ == "__main__":
    main()
