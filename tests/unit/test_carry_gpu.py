"""What travels to a machine with a GPU."""

import sys
import zipfile
from pathlib import Path

import carry_gpu
import pytest

ROOT = Path(__file__).resolve().parents[2]

WHEEL = {
    "comfy_kitchen/__init__.py": b"print()",
    "comfy_kitchen/backends/cuda/__init__.py": b"",
    "comfy_kitchen/backends/cuda/_C.abi3.so": b"x" * 1000,
    "comfy_kitchen/backends/hip/_C.abi3.so": b"x" * 1000,
    "comfy_kitchen-1.dist-info/METADATA": b"Name: comfy-kitchen",
    "comfy_kitchen-1.dist-info/RECORD": b"of the whole wheel",
}


def test_a_repacked_wheel_has_no_libraries_and_a_record_of_the_rest(tmp_path):
    wheel = tmp_path / "comfy_kitchen-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in WHEEL.items():
            archive.writestr(name, content)
    carry_gpu.repack(wheel)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = archive.read("comfy_kitchen-1.dist-info/RECORD").decode()
    assert sorted(names) == sorted(name for name in WHEEL if not name.endswith(".so"))
    assert sorted(line.partition(",")[0] for line in record.splitlines()) == sorted(names)
    assert "comfy_kitchen/__init__.py,sha256=" in record
    assert list(tmp_path.iterdir()) == [wheel]


def test_the_package_travels_with_the_pocket_files_of_the_systems_alone():
    names = {path.as_posix() for path in carry_gpu.package_files()}
    assert {"__init__.py", "benchmarks/bench_gpu.py", "training/configs/harivo_sd15.toml"} <= names
    assert {name for name in names if name.startswith("pocket/")} == {
        f"pocket/{name}.safetensors" for name in carry_gpu.POCKET
    }
    assert all((ROOT / name).is_file() for name in names)
    assert not any(name.startswith(("tests/", "web/", "workflows/")) for name in names)


def test_comfyui_travels_without_the_tokenizers_of_others(comfyui_dir):
    names = {path.as_posix() for path in carry_gpu.comfyui_files(comfyui_dir)}
    assert {"folder_paths.py", "comfy/sd.py", "comfy/sd1_tokenizer/vocab.json", "comfy/sd1_clip_config.json"} <= names
    foreign = [name for name in names if name.startswith("comfy/text_encoders/") and not name.endswith(".py")]
    assert foreign == []
    assert sum((comfyui_dir / name).stat().st_size for name in names) < 10 * 2**20


def test_a_folder_that_is_not_empty_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["carry_gpu.py", str(tmp_path)])
    assert carry_gpu.main() == 1
    assert "is not empty; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wheels", "ComfyUI", "stillmotion"])
def test_the_script_that_travels_uses_what_is_in_the_folder(name):
    assert name in carry_gpu.RUN
