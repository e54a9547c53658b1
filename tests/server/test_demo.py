"""`scripts/dev.py demo`, called like by a user."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture
def command(root: Path, comfyui_dir: Path, tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """The demo with the ComfyUI of the tests, and a temporary folder to find leftover files."""
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "TEMP": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    # the Python of the tests runs the server, as if its environment were activated
    environment |= {"VIRTUAL_ENV": sys.prefix, "COMFYUI_DIR": str(comfyui_dir)}
    return [sys.executable, str(root / "scripts" / "dev.py"), "demo", "--cpu"], environment


def test_the_last_line_is_the_path_of_a_video(command, tmp_path: Path):
    arguments, environment = command
    out = tmp_path / "out"
    options = ["--prompt", "a red square moving left", "--seed", "5", "--frames", "8", "--output", str(out)]
    ended = subprocess.run(
        [*arguments, *options], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "step 25 of 25, 0 s left" in ended.stdout
    path = Path(ended.stdout.splitlines()[-1])
    assert path == tmp_path / "out" / "text_to_video_pocket_seed5.mp4"
    with av.open(str(path)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 8
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="a console's Ctrl-C cannot be sent to one process there")
def test_ctrl_c_stops_the_server_and_leaves_nothing(command, tmp_path: Path):
    arguments, environment = command
    with subprocess.Popen(
        [*arguments, "--output", str(tmp_path / "out")], env=environment, stdout=subprocess.PIPE
    ) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline().startswith(b"starting ComfyUI (CPU)")
        time.sleep(1)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 130
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "out").exists()
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "tmp") not in processes
