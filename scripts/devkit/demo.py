"""A prompt becomes a video file: a real server, a bundled workflow, progress, and the file under its final name."""

import sys
import tempfile
import time
from pathlib import Path

from . import workflow
from .client import Client
from .comfyui import ComfyUI
from .files import Failed
from .server import Server, spare_threads


class Progress:
    """Follows a run on one line of a terminal; elsewhere on lines of their own, at most one per second."""

    def __init__(self, prompt: dict):
        self.prompt = prompt
        self.terminal = sys.stdout.isatty()
        self.node, self.began, self.told, self.shown = "", 0.0, 0.0, ""

    def __call__(self, event: dict) -> None:
        data = event.get("data", {})
        if event["type"] == "executing" and data.get("node"):
            self.start(data["node"])
        elif event["type"] == "progress":
            self.step(int(data["value"]), int(data["max"]))

    def start(self, node: str) -> None:
        self.node, self.began = node, time.monotonic()
        if self.terminal:
            self.show(workflow.title(self.prompt, self.node))

    def step(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self.told < (0.1 if self.terminal else 1.0):
            return
        self.told = now
        left = (now - self.began) / max(1, done) * (total - done)
        self.show(f"{workflow.title(self.prompt, self.node)}: step {done} of {total}, {left:.0f} s left")

    def show(self, text: str) -> None:
        if text == self.shown:  # the last step is told for every picture that is shown after it
            return
        if self.terminal:
            print("\r" + text.ljust(len(self.shown)), end="", flush=True)
        else:
            print(text, flush=True)
        self.shown = text

    def end(self) -> None:
        if self.terminal and self.shown:
            print()


def make(
    comfyui: ComfyUI,
    name: str,
    prompt: dict,
    output: Path,
    *,
    port: int | None,
    cpu: bool,
    options: tuple[str, ...] = (),
) -> Path:
    """Start a server in a throw-away base directory, run the prompt, save its file, stop the server."""
    with tempfile.TemporaryDirectory(prefix="stillmotion-", ignore_cleanup_errors=True) as base:
        threads = spare_threads() if cpu else {}
        server = Server(
            comfyui.folder, comfyui.python, Path(base), port=port, cpu=cpu, options=options, environment=threads
        )
        print(f"starting ComfyUI ({'CPU' if cpu else 'GPU'}) at {server.url}", flush=True)
        with server:
            server.check_pack()
            print(f"ComfyUI answered after {server.seconds:.1f} s", flush=True)
            return _generate(server, name, prompt, output)


def _generate(server: Server, name: str, prompt: dict, output: Path) -> Path:
    client, progress, began = Client(server.url), Progress(prompt), time.monotonic()
    try:
        run = client.run(prompt, timeout=24 * 3600, on_event=progress)
    finally:
        progress.end()
    if run.status == "disconnected":
        raise Failed(f"ComfyUI ended in the middle of the run:\n{server.tail()}")
    files = run.check().results()
    if not files:
        raise Failed("The workflow ended without an output file. Does it have a node such as Save Video?")
    seed = "".join(f"_seed{seed}" for seed in workflow.seeds(prompt)[:1])
    saved = [client.fetch(item, unused(output, name + seed, Path(item["filename"]).suffix)) for item in files]
    print(f"generated in {time.monotonic() - began:.1f} s, from queue to file", flush=True)
    return saved[-1]


def unused(folder: Path, stem: str, suffix: str) -> Path:
    """A name that no file has yet: nothing is ever overwritten."""
    number, path = 1, folder / f"{stem}{suffix}"
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}{suffix}"
    return path
