"""A few damaged inputs of every kind, with a seed of the day: each ends in the value or in a sentence."""

import subprocess
import sys
import time

import pytest

from stillmotion.benchmarks.fuzzing import bench_fuzz, harness

CASES = 15


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in bench_fuzz.KINDS if name not in ("weights", "graphs")])
def test_damaged_inputs_end_in_a_value_or_a_sentence(name):
    seed = int(time.time() // 86400)
    results = list(harness.run(bench_fuzz.kind_of(name), range(CASES), seed))
    assert [result.number for result in results] == list(range(CASES))
    bad = [result for result in results if result.outcome in bench_fuzz.BAD]
    assert bad == [], f"bench fuzz --kind {name} --seed {seed} --case {bad[0].number}"


@pytest.mark.slow
def test_hostile_graphs_end_in_a_value_or_a_sentence(comfy):
    """In a process of its own, because it starts ComfyUI's modules for the processor."""
    command = [sys.executable, "-P", "-m", "stillmotion.benchmarks.fuzzing.bench_fuzz", "--kind", "graphs"]
    ended = subprocess.run([*command, "--cases", "40"], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert '"cases": 40' in ended.stdout
