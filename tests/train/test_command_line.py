"""`python -m stillmotion.training` as people type it."""

import subprocess
import sys


def test_several_processes_get_the_options_of_the_command(tmp_path):
    """torch.distributed.run must not read our options: it has a --start-method of its own."""
    command = [sys.executable, "-m", "stillmotion.training", "motion", "--pocket", tmp_path / "no.safetensors"]
    command += ["--start", tmp_path / "no.safetensors", "--latents", tmp_path, "--out", tmp_path, "--processes", "2"]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert ended.returncode
    assert "ambiguous option" not in ended.stderr
    assert "no.safetensors" in ended.stderr
