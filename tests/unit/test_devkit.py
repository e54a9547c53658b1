"""The modules of scripts/dev.py, without a network and without ComfyUI."""

import base64
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from devkit import chromium, comfyui, environment, files, workflow
from devkit.demo import Progress, new_path
from devkit.server import Server, check_port, spare_threads
from devkit.websocket import Closed, WebSocket

DEV = "scripts/dev.py"


def dev(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / DEV), *arguments]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("kind", ["env", "cli"])
def test_every_package_is_pinned_and_no_address_is_written(root: Path, kind: str):
    text = (root / f"requirements-{kind}.txt").read_text(encoding="utf-8")
    assert all("==" in line for line in text.splitlines())
    assert "://" not in text


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path.resolve()


def test_a_link_leads_there_and_its_removal_spares_the_target(tmp_path: Path):
    target, other, link = tmp_path / "target", tmp_path / "other", tmp_path / "folder" / "link"
    for folder in (target, other):
        folder.mkdir()
        (folder / "kept.txt").write_text(folder.name)
    files.link_folder(link, other)
    files.link_folder(link, target)  # a checkout may have been moved
    assert (link / "kept.txt").read_text() == "target"
    files.unlink_folder(link)
    assert not link.exists()
    assert (target / "kept.txt").read_text() == "target"


def test_a_lock_waits_for_its_holder_and_ends_with_it(tmp_path: Path):
    path = tmp_path / "lock"
    hold = "import sys, time; from devkit.files import lock; from pathlib import Path\n"
    hold += "with lock(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"
    scripts = str(Path(files.__file__).parents[1])
    command = [sys.executable, "-c", hold, str(path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": scripts}, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        with path.open("a+b") as file:
            assert not files._try_lock(file.fileno())
        holder.kill()  # without cleaning up
    with (
        files.lock(path, "x"),
        pytest.raises(files.Failed, match=r"Another run has locked .*: y"),
        files.lock(path, "y", wait=False),
    ):
        pass


def test_an_install_counts_only_when_whole(tmp_path: Path):
    package = tmp_path / "package"
    package.mkdir()
    assert not environment.is_complete(tmp_path), "no marker: the install was interrupted"
    environment.mark_complete(tmp_path, [package])
    assert environment.is_complete(tmp_path)
    package.rmdir()
    assert not environment.is_complete(tmp_path), "something was removed later"


def test_pip_settings_reach_uv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("pip", reason="the Python that runs the tests has no pip to be asked")
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://mirror.example/simple\nfind-links = /a\n    /b\n")
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "_uv_files", list)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    settings = environment.uv_settings()
    assert settings["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert settings["UV_FIND_LINKS"] == "/a,/b"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://other.example/simple")
    assert environment.uv_settings() == {}, "uv was told itself"


@pytest.mark.slow
def test_no_network_at_first_start_is_one_paragraph_and_leaves_nothing_half_made(root: Path, tmp_path: Path):
    nowhere = "http://127.0.0.1:9/simple"
    offline = {
        "UV_DEFAULT_INDEX": nowhere,
        "PIP_INDEX_URL": nowhere,
        "UV_NO_CACHE": "1",
        "UV_HTTP_RETRIES": "0",
        "PIP_RETRIES": "0",
    }
    cleared = {"UV_FIND_LINKS": "", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull, "COMFYUI_DIR": ""}
    ended = dev(root, "env", STILLMOTION_CACHE=str(tmp_path / "cache"), **offline, **cleared)
    assert ended.returncode == 1
    assert "Could not download the " in ended.stderr  # the packages, or before that the installer
    assert "run the same command again" in ended.stderr
    assert "Traceback" not in ended.stderr
    folders = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir() and path.name != "links"]
    assert not [name for name in folders if name != "tools"], folders


def test_too_little_space_is_reported_before_anything_is_installed(tmp_path: Path):
    with pytest.raises(files.Failed, match=r"needs about 1e\+06 GB .* are free.*STILLMOTION_CACHE"):
        files.need_space(tmp_path, 1e6, "The environment")


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(files.Failed, match=f"port {port} cannot be used.*--port"):
            check_port(port)


def test_a_server_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path):
    (tmp_path / "main.py").write_text("raise SystemExit('no module named torch')")
    with pytest.raises(files.Failed, match="ended with code 1 while starting:\nno module named torch"):
        Server(tmp_path, Path(sys.executable), tmp_path / "base").start()
    assert not (tmp_path / "base" / "custom_nodes" / files.PACK).exists()


SERVING = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200), self.end_headers(), self.wfile.write(b"{}")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
"""
OWNER = """
import sys, time
from pathlib import Path
from devkit.server import Server
server = Server(Path(sys.argv[1]), Path(sys.executable), Path(sys.argv[1]) / "base").start()
print(server.port, flush=True)
time.sleep(60)
"""


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("gentle", [True, False])
def test_a_server_is_gone_when_it_was_stopped(tmp_path: Path, gentle: bool):
    (tmp_path / "main.py").write_text(SERVING)
    server = Server(tmp_path, Path(sys.executable), tmp_path / "base").start()
    assert listening(server.port)
    server.stop(gentle=gentle)
    assert not listening(server.port)


def test_a_server_ends_with_its_owner_however_that_ends(tmp_path: Path):
    (tmp_path / "main.py").write_text(SERVING)
    variables = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], env=variables, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        port = int(owner.stdout.readline())
        assert listening(port)
        owner.kill()
    deadline = time.monotonic() + 20
    while listening(port) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not listening(port)


@pytest.mark.skipif(not hasattr(os, "getloadavg"), reason="this system tells no load")
def test_a_busy_machine_gets_fewer_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = os.cpu_count() or 1
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert spare_threads() == {}
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0 * cores, 0.0, 0.0))
    assert spare_threads() == ({"OMP_NUM_THREADS": "1"} if cores > 1 else {})
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert spare_threads() == {}, "the user has said it"


def test_a_folder_without_comfyui_is_named(root: Path, tmp_path: Path):
    with pytest.raises(files.Failed, match=r"is not a ComfyUI folder: it has no main\.py"):
        comfyui.comfyui_folder(str(tmp_path))


def test_a_comfyui_without_python_is_asked_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for part in comfyui.PARTS:
        (tmp_path / part).mkdir()
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    with pytest.raises(files.Failed, match="Which Python runs"):
        comfyui.find(str(tmp_path))
    python = tmp_path / "venv" / ("Scripts/python.exe" if files.WINDOWS else "bin/python")
    python.parent.mkdir(parents=True)
    python.touch()
    installation = comfyui.find(str(tmp_path))
    assert (installation.folder, installation.python) == (tmp_path.resolve(), python)
    assert installation.models_options(None) == ()
    (tmp_path / "models").mkdir()
    assert installation.models_options(None) == ("--models-directory", str(tmp_path.resolve() / "models"))
    with pytest.raises(files.Failed, match="nowhere is not a folder"):
        installation.models_options(str(tmp_path / "nowhere"))


def test_chromium_is_the_one_that_was_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STILLMOTION_CHROMIUM", "/opt/browser")
    assert chromium.find() == Path("/opt/browser")


def graph() -> dict:
    text = {"class_type": "CLIPTextEncode", "inputs": {"text": "old"}, "_meta": {"title": "Prompt"}}
    frames = {"class_type": "PrimitiveInt", "inputs": {"value": 16}, "_meta": {"title": "Frames"}}
    sampler = {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["1", 0]}}
    linked = {"class_type": "RandomNoise", "inputs": {"noise_seed": ["9", 0]}}
    return {"1": text, "2": frames, "3": sampler, "4": linked}


def test_prompt_seed_and_frames_go_where_the_titles_say():
    before = graph()
    after = workflow.adapt(before, text="new", seed=5, frames=8)
    assert (after["1"]["inputs"]["text"], after["2"]["inputs"]["value"]) == ("new", 8)
    assert after["3"]["inputs"]["seed"] == 5
    assert after["4"]["inputs"]["noise_seed"] == ["9", 0], "a linked seed is set where it comes from"
    assert before == graph()
    with pytest.raises(files.Failed, match="0 nodes titled 'Negative prompt'"):
        workflow.adapt(before, negative="x")


def test_an_unknown_workflow_and_an_editor_file_are_named(root: Path, tmp_path: Path):
    with pytest.raises(files.Failed, match=r"no workflow 'nothing'.*text_to_video_pocket"):
        workflow.load("nothing")
    editor = tmp_path / "editor.json"
    editor.write_text(json.dumps({"nodes": [], "links": []}))
    with pytest.raises(files.Failed, match="not in API form"):
        workflow.load(str(editor))


def test_progress_tells_the_last_step_once(capsys: pytest.CaptureFixture):
    tell = Progress({"1": {"class_type": "KSampler", "inputs": {}}})
    tell({"type": "executing", "data": {"node": "1"}})
    for done in (1, 2, 2, 2):
        tell({"type": "progress", "data": {"value": done, "max": 2}})
    tell.end()
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "KSampler: step 1 of 2",
        "KSampler: step 2 of 2",
    ]


def test_no_file_is_overwritten(tmp_path: Path):
    first = new_path(tmp_path, "video", ".mp4")
    first.touch()
    assert (first.name, new_path(tmp_path, "video", ".mp4").name) == ("video.mp4", "video_2.mp4")


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
from devkit.client import Client
Client(sys.argv[1]).fetch({"filename": "video.mp4"}, Path(sys.argv[2]) / "video.mp4")
"""


@pytest.mark.skipif(files.WINDOWS, reason="a limit on the size of files stands in for the full disk")
def test_a_full_disk_is_named_and_leaves_no_half_file(tmp_path: Path):
    class Video(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 10_000)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Video) as server:
        threading.Thread(target=server.serve_forever).start()
        command = [sys.executable, "-c", LIMITED, f"http://127.0.0.1:{server.server_port}", str(tmp_path)]
        scripts = str(Path(files.__file__).parents[1])
        ended = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": scripts}, capture_output=True, text=True, check=False
        )
        server.shutdown()
    assert "video.mp4 could not be written: File too large" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_mistakes_on_the_command_line_are_one_sentence(root: Path, tmp_path: Path):
    ended = dev(root, "demo", "--workflow", "nothing", STILLMOTION_CACHE=str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.startswith("There is no workflow 'nothing'.")
    assert dev(root, "demo", "--sed", "3").returncode == 2
    assert "--frames: 0 is not 1 or more" in dev(root, "demo", "--frames", "0").stderr
    assert "There is no benchmark 'nothing'" in dev(root, "bench", "nothing").stderr


def frame(code: int, payload: bytes, final: bool = True) -> bytes:
    size = len(payload)
    length = (
        bytes([size])
        if size < 126
        else b"\x7e" + struct.pack(">H", size)
        if size < 65536
        else b"\x7f" + struct.pack(">Q", size)
    )
    return bytes([code | 128 * final]) + length + payload


@pytest.fixture
def stream():
    """Our websocket, connected to the plain socket of a server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        accepted: list[socket.socket] = []

        def serve() -> None:
            peer, _ = listener.accept()
            head = peer.recv(4096).decode()
            key = head.split("Sec-WebSocket-Key: ")[1].split("\r\n")[0]
            digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
            answer = (
                f"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {base64.b64encode(digest).decode()}\r\n\r\n"
            )
            peer.sendall(answer.encode())
            accepted.append(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        client = WebSocket(f"ws://127.0.0.1:{listener.getsockname()[1]}/ws?clientId=a", timeout=10)
        thread.join()
        yield client, accepted[0]
        client.close()
        accepted[0].close()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_000])
def test_messages_of_every_length_arrive(stream, size: int):
    client, peer = stream
    thread = threading.Thread(target=peer.sendall, args=(frame(2, b"x" * size),))
    thread.start()
    assert client.receive() == b"x" * size
    thread.join()


def test_pieces_pings_and_a_pause_in_the_middle_do_not_disturb(stream):
    client, peer = stream
    client.settimeout(0.1)
    whole = frame(1, "schö".encode(), final=False) + frame(9, b"there?") + frame(0, b"n")
    peer.sendall(whole[:3])
    with pytest.raises(TimeoutError):
        client.receive()
    peer.sendall(whole[3:])
    assert client.receive() == "schön"
    code, length, *mask_and_payload = peer.recv(100)
    payload = bytes(byte ^ mask_and_payload[i % 4] for i, byte in enumerate(mask_and_payload[4:]))
    assert (code, length, payload) == (128 | 10, 128 | 6, b"there?")


def test_the_end_of_a_connection_is_reported(stream):
    client, peer = stream
    peer.sendall(frame(8, b""))
    with pytest.raises(Closed):
        client.receive()
