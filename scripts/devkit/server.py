"""A real ComfyUI server with this pack, in a separate base directory."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from .files import PACK, ROOT, WINDOWS, Failed, link_folder, unlink_folder

FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
IMPORT_FAILURES = ("IMPORT FAILED", "Cannot import", "comfy_entrypoint in", "lack of NODE_CLASS_MAPPINGS")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_port(port: int) -> int:
    """The port. Raises Failed when another program uses it already."""
    with socket.socket() as probe:
        if not WINDOWS:  # on Windows this option would let two servers share one port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Failed(
                f"port {port} cannot be used ({error.strerror}): another program, perhaps another ComfyUI, uses it. "
                "Stop that program, choose another port with --port, or omit --port to use a free one."
            ) from None
    return port


def spare_threads() -> dict[str, str]:
    """OMP_NUM_THREADS for a machine that is busy with other work already.

    A thread that has to share its core makes all other threads wait, hundreds of times per step: two threads on two
    busy cores were ten times slower than one. Empty on an idle machine, or where the user has set the variable.
    """
    if "OMP_NUM_THREADS" in os.environ or not hasattr(os, "getloadavg"):
        return {}
    cores = os.cpu_count() or 1
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    spare = max(1, round(available * (1 - os.getloadavg()[0] / cores)))
    return {"OMP_NUM_THREADS": str(spare)} if spare < available else {}


class Server:
    """`with Server(...) as server:` starts the server, waits until it responds, and stops it at the end."""

    def __init__(
        self,
        comfyui: Path,
        python: Path,
        base: Path,
        *,
        port: int | None = None,
        cpu: bool = True,
        options: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        timeout: float = 300,
    ):
        self.comfyui, self.python, self.base = comfyui, python, base
        self.port = free_port() if port is None else check_port(port)
        self.options = ["--disable-auto-launch", "--disable-api-nodes", *(["--cpu"] if cpu else []), *options]
        # ComfyUI must find the pack by its folder alone, without the PYTHONPATH of the tests
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # otherwise torch creates a cache folder in the system's temporary folder
        variables["TORCHINDUCTOR_CACHE_DIR"] = str(base / "torchinductor")
        variables |= {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
        self.environment = {**variables, **(environment or {})}
        self.timeout = timeout
        self.log = base / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.seconds = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        place = ["--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base)]
        # the default database is in the ComfyUI folder, which is shared and may be read-only
        database = ["--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"]
        guard = [sys.executable, str(Path(__file__).with_name("guard.py"))]  # ends ComfyUI whenever this process ends
        return [*guard, str(self.python), str(self.comfyui / "main.py"), *place, *database, *self.options]

    def start(self) -> "Server":
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link_folder(self.base / "custom_nodes" / PACK, ROOT)
        self._copy_example()
        start_time = time.monotonic()
        with self.log.open("wb") as log:
            # a separate process group: Ctrl-C in the terminal reaches only us, and we shut the server down properly
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.base,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                process_group=None if WINDOWS else 0,
            )
        try:
            self._wait(start_time)
        except BaseException:
            self.stop(gentle=False)
            raise
        self.seconds = time.monotonic() - start_time
        return self

    def _copy_example(self) -> None:
        """The picture that a new Load Image node shows, as in the input folder of any ComfyUI."""
        source, picture = (folder / "input" / "example.png" for folder in (self.comfyui, self.base))
        if source.is_file() and not picture.exists():
            picture.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, picture)

    def _wait(self, start_time: float) -> None:
        assert self.process is not None
        while time.monotonic() - start_time < self.timeout:
            if self.process.poll() is not None:
                raise Failed(f"ComfyUI ended with code {self.process.returncode} while starting:\n{self.tail()}")
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.1)
        raise Failed(f"ComfyUI did not respond within {self.timeout:g} s; the last lines of its log:\n{self.tail()}")

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def lines(self) -> list[str]:
        """The lines of the log, without colour codes."""
        return [
            COLOURS.sub("", line).rstrip()
            for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        ]

    def tail(self, count: int = 20) -> str:
        return "\n".join(self.lines()[-count:])

    def import_failures(self) -> list[str]:
        """Log lines about packs that could not be loaded; ComfyUI starts nevertheless and reports it nowhere else."""
        return [line for line in self.lines() if any(text in line for text in IMPORT_FAILURES)]

    def check_pack(self) -> None:
        if failures := self.import_failures():
            lines = self.lines()
            last = max(i for i, line in enumerate(lines) if line == failures[0])
            raise Failed("ComfyUI could not load this pack:\n" + "\n".join(lines[max(0, last - 12) : last + 1]))

    def wait(self) -> int:
        """Wait until the server ends by itself."""
        assert self.process is not None
        return self.process.wait()

    def stop(self, *, gentle: bool = True) -> None:
        """Stop the server: with Ctrl-C first if `gentle`, so that ComfyUI closes its database, then by force."""
        if self.process is not None:
            if gentle and self.process.poll() is None:
                self._interrupt()
            assert self.process.stdin is not None
            self.process.stdin.close()  # the guard ends ComfyUI, then itself
            self.process.wait()
        unlink_folder(self.base / "custom_nodes" / PACK)

    def _interrupt(self) -> None:
        assert self.process is not None
        if sys.platform == "win32":
            self.process.send_signal(signal.CTRL_BREAK_EVENT)
        else:
            os.killpg(self.process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(8)

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop(gentle=False)
