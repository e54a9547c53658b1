"""The guarantees of a training run, tested with real processes that communicate over gloo.

G1  a stopped and resumed run equals an uninterrupted one bit for bit, with the same number of processes
G2  with another number of processes, it is equal up to the order of sums
G3  when a save is killed, the previous state remains
G5  no sample is lost or repeated, whatever the number of processes
(G4, changed data, base or settings are refused: test_engine. G6, the exported file holds the trained weights:
test_harivo_training.)
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from devkit.server import free_port

from stillmotion.training.data.order import row
from stillmotion.training.engine import state
from stillmotion.training.engine.loop import fit

WORKER = Path(__file__).with_name("worker.py")
spec = importlib.util.spec_from_file_location("worker", WORKER)
assert spec
assert spec.loader
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)


def launch(root: Path, *runs: str, launcher: tuple[str, ...] = ()) -> None:
    """Runs of worker.py in processes of their own."""
    ended = subprocess.run(
        [sys.executable, "-P", *launcher, str(WORKER), str(root), *runs],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


def results(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("result-*.json"))]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The runs: an uninterrupted and a stopped one with 2 processes, and the stopped one resumed by 1, 2 and 4."""
    root = tmp_path_factory.mktemp("runs")
    launch(root, "whole", "cut", launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"))
    for count in (1, 2, 4):
        shutil.copytree(root / "cut" / "state", root / f"resumed-{count}" / "state")
    worker.go(root / "resumed-1")
    launch(root, *(f"resumed-{count}:{count}:{free_port()}" for count in (2, 4)))
    return root


def difference(a: dict, b: dict) -> float:
    """The largest difference of the weights and of the queue, relative to their size."""
    pairs = [(a["queue"], b["queue"]), *((a["average"][n], b["average"][n]) for n in a["average"])]
    tensors = [(torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)) for x, y in pairs]
    return max(((x - y).norm() / x.norm()).item() for x, y in tensors)


@pytest.mark.slow
def test_a_stop_that_reaches_one_process_stops_all_of_them_at_one_step(root):
    (saved,) = state.states(root / "cut" / "state")
    step = state.record(saved)["step"]
    assert worker.CUT < step < worker.STEPS
    assert [len(r["seen"]) for r in results(root / "cut")] == [step * worker.BATCH // 2] * 2


@pytest.mark.slow
def test_g1_two_processes_resumed_by_two_are_bit_for_bit_the_run_that_was_not_stopped(root):
    whole, resumed = results(root / "whole"), results(root / "resumed-2")
    assert whole[0]["average"]
    assert [r["average"] for r in whole] == [r["average"] for r in resumed]
    assert [r["queue"] for r in whole] == [r["queue"] for r in resumed]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_g2_another_number_of_processes_changes_the_order_of_sums_only(root, count):
    whole, resumed = results(root / "whole")[0], results(root / f"resumed-{count}")
    assert len(resumed) == count
    for result in resumed:
        assert difference(whole, result) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_g5_no_sample_is_lost_or_repeated(root, count):
    samples = sorted(k for run in ("cut", f"resumed-{count}") for r in results(root / run) for k in r["seen"])
    assert samples == list(range(worker.STEPS * worker.BATCH))


def test_g5_an_epoch_takes_each_row_once_and_the_next_in_another_order():
    epochs = [[row(3, k, 30) for k in range(e * 30, (e + 1) * 30)] for e in range(3)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [row(3, k, 30) for k in reversed(range(30))] == epochs[0][::-1]
    assert [row(4, k, 30) for k in range(30)] != epochs[0]


def killed_in_a_save(out: Path) -> bool:
    """Start the run and kill it with SIGKILL, once one save is complete and another one has started."""
    child = subprocess.Popen([sys.executable, "-P", str(WORKER), str(out.parent), "endless"])
    folder, end = out / "state", time.monotonic() + 300
    while not (state.states(folder) and any(folder.glob("partial-*/*"))):
        assert child.poll() is None
        assert time.monotonic() < end
    child.send_signal(signal.SIGKILL)
    child.wait()
    return any(folder.glob("partial-*"))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_g3_a_killed_save_leaves_the_state_before_it(tmp_path):
    attempts = (tmp_path / str(i) / "endless" for i in range(5))  # a save may be complete before the signal arrives
    out = next(folder for folder in attempts if killed_in_a_save(folder))
    step = state.record(state.states(out / "state")[-1])["step"]

    class Seen(worker.Heavy):
        samples: list[int] = []  # noqa: RUF012

        def forward(self, samples):
            self.samples += samples
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(Seen(), worker.endless(out))
    assert Seen.samples == [step]
