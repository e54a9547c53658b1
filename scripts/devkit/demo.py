"""Makes a video file from a prompt: starts a real server, runs a bundled workflow, shows progress, saves the file."""

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
    """Shows the progress of a run: in a terminal on one line, otherwise on separate lines, at most one per second."""

    def __init__(self, prompt: dict):
        self.prompt = prompt
        self.terminal = sys.stdout.isatty()
        self.node, self.start_time, self.last_update, self.text = "", 0.0, 0.0, ""

    def __call__(self, event: dict) -> None:
        data = event.get("data", {})
        if event["type"] == "executing" and data.get("node"):
            self.start(data["node"])
        elif event["type"] == "progress":
            self.step(int(data["value"]), int(data["max"]))

    def start(self, node: str) -> None:
        self.node, self.start_time = node, time.monotonic()
        if self.terminal:
            self.show(workflow.title(self.prompt, self.node))

    def step(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self.last_update < (0.1 if self.terminal else 1.0):
            return
        self.last_update = now
        remaining = (now - self.start_time) / max(1, done) * (total - done)
        self.show(f"{workflow.title(self.prompt, self.node)}: step {done} of {total}, {remaining:.0f} s left")

    def show(self, text: str) -> None:
        if text == self.text:  # the server repeats the last step for every preview that follows it
            return
        if self.terminal:
            print("\r" + text.ljust(len(self.text)), end="", flush=True)
        else:
            print(text, flush=True)
        self.text = text

    def end(self) -> None:
        if self.terminal and self.text:
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
    """Start a server in a temporary base directory, run the prompt, save its file and stop the server."""
    with tempfile.TemporaryDirectory(prefix="stillmotion-", ignore_cleanup_errors=True) as base:
        threads = spare_threads() if cpu else {}
        server = Server(
            comfyui.folder, comfyui.python, Path(base), port=port, cpu=cpu, options=options, environment=threads
        )
        print(f"starting ComfyUI ({'CPU' if cpu else 'GPU'}) at {server.url}", flush=True)
        with server:
            server.check_pack()
            print(f"ComfyUI started in {server.seconds:.1f} s", flush=True)
            return _generate(server, name, prompt, output)


def _generate(server: Server, name: str, prompt: dict, output: Path) -> Path:
    client, progress, start_time = Client(server.url), Progress(prompt), time.monotonic()
    try:
        run = client.run(prompt, timeout=24 * 3600, on_event=progress)
    finally:
        progress.end()
    if run.status == "disconnected":
        raise Failed(f"ComfyUI ended during the run; the last lines of its log:\n{server.tail()}")
    files = run.check().results()
    if not files:
        raise Failed("The workflow produced no output file. Add an output node, such as Save Video.")
    seed = "".join(f"_seed{seed}" for seed in workflow.seeds(prompt)[:1])
    paths = [client.fetch(item, new_path(output, name + seed, Path(item["filename"]).suffix)) for item in files]
    print(f"generated in {time.monotonic() - start_time:.1f} s, from queue to file", flush=True)
    return paths[-1]


def new_path(folder: Path, stem: str, suffix: str) -> Path:
    """A path that does not exist yet, so that no file is overwritten."""
    number, path = 1, folder / f"{stem}{suffix}"
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}{suffix}"
    return path
