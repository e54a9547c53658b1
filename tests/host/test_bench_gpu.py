"""`bench gpu` on a processor: every part runs with small networks, and what it cannot run is said."""

import json
import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from stillmotion.benchmarks import bench_gpu
from stillmotion.benchmarks.gpu import machine, runner
from stillmotion.benchmarks.gpu.machine import Setup

CPU = Setup(cpu=True, tiny=True)


def options(tmp_path, budget=1000.0):
    return Namespace(budget=budget, out=tmp_path)


@pytest.fixture
def parts(comfy, monkeypatch):
    """parts(name=function, ...) replaces the parts of the command."""

    def replace(**functions):
        module = type(sys)("stillmotion.benchmarks.gpu.toy")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(runner, "PARTS", {name: ("toy", name) for name in functions})
        return list(functions)

    return replace


@pytest.mark.slow
def test_all_parts_run_on_a_processor(comfyui_dir, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "stillmotion.benchmarks.bench_gpu", "--cpu", "--tiny", "--budget", "3000"]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    results = json.loads(ended.stdout.strip().splitlines()[-1])
    assert list(results["parts"]) == list(runner.PARTS)
    assert results["failed"] == results["skipped"] == []
    assert json.loads((tmp_path / "results.json").read_text())["parts"].keys() == runner.PARTS.keys()
    assert results["parts"]["sampling"]["vidrd_bf16_db"] < 99  # a reduced precision was used


def test_a_part_that_fails_does_not_stop_the_others(parts, tmp_path, capsys):
    def fine(_setup):
        return machine.check({"value": 0.5}, {"value": ("<=", 1.0)})

    def outside(_setup):
        return machine.check({"value": 2.0}, {"value": ("<=", 1.0)})

    def broken(_setup):
        raise KeyError("gone")

    def scarce(setup):
        machine.require_memory(setup, 1e6)

    names = parts(fine=fine, outside=outside, broken=broken, scarce=scarce)
    assert runner.run(names, CPU, options(tmp_path)) == 1
    results = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert results["failed"] == ["outside", "broken"]
    assert results["skipped"] == ["scarce"]
    assert results["parts"]["outside"]["failed"] == "value is 2, not <= 1"
    assert results["parts"]["scarce"]["skipped"].startswith("it needs 1000000.0 GB of free memory and ")
    assert "| fine | value | 0.5 | <= 1 |" in (tmp_path / "table.md").read_text()


def test_results_are_written_after_each_part_and_a_spent_budget_is_said(parts, tmp_path):
    def second(_setup):
        assert "first" in json.loads((tmp_path / "results.json").read_text())["parts"]
        return {}

    names = parts(first=lambda _setup: {"value": 1}, second=second)
    assert runner.run(names, CPU, options(tmp_path)) == 0
    assert runner.run(names, CPU, options(tmp_path, budget=0)) == 0
    assert "the budget of 0 s was spent" in (tmp_path / "results.json").read_text()


def test_without_cuda_or_packages_or_with_an_unknown_part_one_sentence_says_so(monkeypatch, capsys):
    monkeypatch.setattr(machine, "has_cuda", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_gpu"])
    assert bench_gpu.main() == 1
    assert "`--cpu --tiny` runs every part with small networks on the processor" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["bench_gpu", "--cpu", "--tiny", "--parts", "nothing"])
    assert bench_gpu.main() == 1
    assert "there is no part 'nothing'; the parts are modules" in capsys.readouterr().err
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no_such_package", "yaml"))
    assert bench_gpu.main() == 1
    assert "these packages are missing: no_such_package; see docs/gpu.md" in capsys.readouterr().err


def test_errors_and_ratios():
    reference = torch.tensor([3.0, 4.0])
    assert machine.relative_error(reference, reference) == 0
    assert machine.relative_error(1.1 * reference, reference) == pytest.approx(0.1, abs=1e-6)
    assert machine.relative_error(torch.tensor([3.0, float("nan")]), reference) == float("inf")
    assert machine.psnr(torch.zeros(4), torch.full((4,), 0.1)) == pytest.approx(20.0, abs=1e-4)
    assert machine.psnr(torch.tensor([float("nan")]), torch.zeros(1)) == 0
    assert machine.psnr(torch.zeros(1), torch.zeros(1)) == 99
    with pytest.raises(machine.Failed, match=r"value is 0\.5, not >= 1"):
        machine.check({"value": 0.5}, {"value": (">=", 1.0)})
    assert machine.check({"value": 1.5}, {"value": (">=", 1.0)})["tolerances"] == {"value": ">= 1"}
