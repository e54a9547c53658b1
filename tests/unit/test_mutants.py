"""The benchmark of small faults: which ones the tests notice, tried in a copy, and the tests of every module."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stillmotion.benchmarks.reliability import bench_mutants
from stillmotion.benchmarks.reliability.bench_mutants import TESTS, files_of, reason, share

SOURCE = "def double(x):\n    return 2 * x\n"
CODES = {
    "wrong number": SOURCE.replace("2", "3"),
    "the same": SOURCE.replace("2 * x", "x * 2"),
    "endless": SOURCE.replace("return", "while True:\n        pass\n    return"),
    "not importable": "1 / 0\n",
}
TEST = "from stillmotion.calc import double\n\n\ndef test_double():\n    assert double(2) == 4\n"
TRY = """
import json, sys
from pathlib import Path
import pytest
from stillmotion.benchmarks.reliability.mutants import Mutant, applied, attempt, copy_of

root, codes = Path(sys.argv[1]), json.loads(sys.argv[2])
results = {}
with copy_of(root) as copy:
    results["unchanged"] = attempt(copy, ["tests"], 60, compile_files=True)
    for name, code in codes.items():
        with applied(copy, Mutant("calc.py", 2, "", "", "", code)):
            results[name] = attempt(copy, ["tests"], 15 if name == "endless" else 60)
    results["unchanged again"] = attempt(copy, ["tests"], 60)
print(json.dumps({name: [outcome.kind, outcome.by] for name, outcome in results.items()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="mutants are tried by forks")
def test_faults_are_noticed_and_the_checkout_is_not_changed(tmp_path: Path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "calc.py").write_text(SOURCE)
    (tmp_path / "tests" / "test_calc.py").write_text(TEST)
    ended = subprocess.run(
        [sys.executable, "-P", "-c", TRY, str(tmp_path), json.dumps(CODES)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == {
        "unchanged": ["survived", ""],
        "wrong number": ["noticed", "tests/test_calc.py::test_double"],
        "the same": ["survived", ""],
        "endless": ["timeout", ""],
        "not importable": ["noticed", "tests/test_calc.py"],
        "unchanged again": ["survived", ""],
    }
    assert (tmp_path / "calc.py").read_text() == SOURCE
    assert {path.name for path in tmp_path.iterdir()} == {"tests", "__init__.py", "calc.py"}


@pytest.mark.parametrize("area", TESTS)
def test_every_area_has_files_and_tests(root: Path, area: str):
    assert files_of(area)
    for file in files_of(area):
        assert (root / file).is_file()
        for test in bench_mutants.tests_of(file):
            assert test == "--fast" or (root / test).exists(), test


def test_a_survivor_that_is_named_as_equivalent_counts_as_a_survivor():
    lines = [{"kind": kind} for kind in ("noticed", "timeout", "survived", "noticed")]
    assert share(lines) == 0.75


def test_an_equivalent_mutant_is_known_by_its_file_and_lines():
    unknown = {"file": "model_patches/core/levels.py", "before": "no such line", "after": "no such line"}
    assert reason(unknown) == ""
