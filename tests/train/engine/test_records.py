"""What a run writes down, alone or with other processes: logs, states, and values in the order of the samples."""

import json
import logging
import os
import stat
import threading

import pytest
import torch
from torch import nn

from stillmotion.training.engine import logs, loop, state
from stillmotion.training.engine.loop import Loop, fit, gather_samples
from stillmotion.training.engine.task import SystemTask, Task
from stillmotion.training.plans.run import TrainTable


class Numbers(Task):
    """Its figures are known: `number` is the mean of the numbers of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, samples):
        return {"loss": self.weight.sum(), "number": torch.tensor(samples).float().mean()}


@pytest.fixture
def run(tmp_path):
    return TrainTable(out=tmp_path / "run", steps=6, batch=4, lr=1e-2, warmup=2, save_every=3, log_every=3)


def logged(run):
    return [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]


def test_a_line_of_the_log_has_the_means_since_the_line_before(run):
    fit(Numbers(), run)
    lines = logged(run)
    assert [line["step"] for line in lines] == [3, 6]
    assert [line["number"] for line in lines] == pytest.approx([5.5, 17.5])  # samples 0 to 11 and 12 to 23
    assert [line["lr"] for line in lines] == [loop.learning_rate(run, 2), loop.learning_rate(run, 5)]
    assert all("skipped_steps" not in line for line in lines)


def test_the_log_has_the_means_over_all_processes_and_their_values(run, monkeypatch):
    def gather(shares, figures):
        shares[:] = [figures, {"loss": [6.0], "extra": [1.0]}]

    monkeypatch.setattr(loop.dist, "all_gather_object", gather)
    one = Loop(Numbers(), run)
    monkeypatch.setattr(one, "world", 2)
    figures = {"loss": [1.0, 2.0]}
    one.counts += torch.tensor([1, 1, 0, 0])
    one._report(logs.Logs(run.out, 0, 6), figures)
    (line,) = logged(run)
    assert (line["loss"], line["extra"]) == (3.0, 1.0)
    assert figures == {}
    one._report(None, figures)  # a process that does not write
    assert len(logged(run)) == 1


def test_the_remaining_time_is_that_of_the_remaining_steps(tmp_path, monkeypatch, caplog):
    times = iter([100.0, 160.0])
    monkeypatch.setattr(logs.time, "monotonic", lambda: next(times))
    caplog.set_level(logging.INFO)
    log = logs.Logs(tmp_path, 10, 200)
    log.write(20, {"loss": 0.25})  # 6 s for each of 10 steps; 180 steps are 1080 s
    assert "step 20/200  loss 0.25  6.00 s/step  ETA 0h18" in caplog.text
    times = iter([0.0, 60.0])
    log = logs.Logs(tmp_path, 0, 1000)
    log.write(2, {})  # 30 s for each of 998 steps: 499 minutes
    assert "ETA 8h19" in caplog.text
    log.close()


def test_nothing_of_the_logs_runs_on_after_the_training(run):
    before = set(threading.enumerate())
    fit(Numbers(), run)
    assert set(threading.enumerate()) <= before


def test_a_resumed_run_replaces_what_the_killed_run_logged_after_its_state(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = logs.Logs(tmp_path, 0, 9)
    for step in (1, 2, 3, 4, 5, 6):
        log.write(step, {"loss": 1.0})
    log.close()
    log = logs.Logs(tmp_path, 4, 9)  # the newest state is that of step 4
    log.write(7, {"loss": 2.0})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 1), (3, 1), (4, 1), (7, 2)]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 1), (3, 1), (4, 1), (7, 2)]


@pytest.mark.parametrize("available", [True, False])
def test_the_processor_is_used_where_there_is_no_gpu(run, monkeypatch, available):
    choices = []

    def accelerator(**options):
        choices.append(options["cpu"])
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "Accelerator", accelerator)
    monkeypatch.setattr(loop.torch.cuda, "is_available", lambda: available)
    with pytest.raises(KeyboardInterrupt):
        Loop(Numbers(), run)
    assert choices == [not available]


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 5)])
def test_values_of_all_processes_are_in_the_order_of_the_samples(monkeypatch, shape):
    """With 4 processes, process r has the samples r, r + 4, r + 8."""

    def value(sample):
        return torch.full(shape[1:], float(sample))

    def gather(parts, values):
        assert torch.equal(values, torch.stack([value(sample) for sample in (1, 5, 9)]))
        for r, part in enumerate(parts):
            part.copy_(torch.stack([value(sample) for sample in (r, r + 4, r + 8)]))

    monkeypatch.setattr(loop.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(loop.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(loop.dist, "all_gather", gather)
    mine = torch.stack([value(sample) for sample in (1, 5, 9)])
    torch.testing.assert_close(gather_samples(mine), torch.stack([value(sample) for sample in range(12)]))


def test_one_process_has_its_values_as_they_are(monkeypatch):
    values = torch.rand(3, 2)
    assert gather_samples(values) is values
    monkeypatch.setattr(loop.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(loop.dist, "get_world_size", lambda: 1)
    assert gather_samples(values) is values


@pytest.mark.parametrize(("rank", "first"), [(None, True), ("0", True), ("1", False), ("10", False)])
def test_the_first_process_is_the_only_one_or_that_of_rank_0(monkeypatch, rank, first):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert loop.first_process() is first


def test_a_flag_of_one_process_is_a_flag_of_all(run, monkeypatch):
    def other_process(values, op):
        assert op == loop.dist.ReduceOp.MAX
        values.copy_(torch.maximum(values, torch.tensor([0.0, 1.0, 0.0])))

    one = Loop(Numbers(), run)
    assert one._agree(True, False) == [True, False]
    monkeypatch.setattr(loop.dist, "all_reduce", other_process)
    monkeypatch.setattr(one, "world", 2)
    assert one._agree(True, False, False) == [True, True, False]


@pytest.mark.parametrize("batch", [3, 5])
def test_a_batch_that_does_not_divide_among_the_processes_is_refused(run, monkeypatch, batch):
    monkeypatch.setattr(loop, "Accelerator", type("Two", (loop.Accelerator,), {"num_processes": 2}))
    with pytest.raises(ValueError, match=f"batch {batch} does not divide among 2 processes; choose a multiple of 2"):
        Loop(Numbers(), TrainTable(**(vars(run) | {"batch": batch})))


def test_a_save_deletes_what_killed_saves_left_behind(tmp_path):
    tensors = {"x": torch.arange(4.0)}
    state.save(tmp_path, 10, tensors, {}, keep=5)
    for name in ("partial-step-00000015", "partial-step-00000020", "step-00000017", "step-00000020"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__7_0.distcp").write_bytes(b"half")
    state.save(tmp_path, 20, tensors, {"note": "b"}, keep=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000020"]
    assert [path.name for path in state.states(tmp_path)] == ["step-00000010", "step-00000020"]
    assert not (tmp_path / "step-00000020" / "__7_0.distcp").exists()
    assert state.record(tmp_path / "step-00000020") == {"step": 20, "note": "b"}
    assert state.names(tmp_path / "step-00000020") == {"x"}
    loaded = {"x": torch.zeros(4)}
    state.load(tmp_path / "step-00000020", loaded)
    assert torch.equal(loaded["x"], tensors["x"])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_states_remain(tmp_path, keep):
    for step in (1, 2, 30, 4):
        state.save(tmp_path, step, {"x": torch.ones(1)}, {}, keep=keep)
    newest = ["step-00000001", "step-00000002", "step-00000004", "step-00000030"][-keep:]
    assert [path.name for path in state.states(tmp_path)] == newest
    assert sorted(path.name for path in tmp_path.iterdir()) == newest


@pytest.mark.skipif(os.name != "posix", reason="folders are not synced there")
def test_a_state_is_on_the_disk_before_it_counts_as_complete(tmp_path, monkeypatch):
    """The entry of the renamed folder is synced before COMPLETE is written, and COMPLETE itself after that."""
    events, fsync, replace = [], os.fsync, os.replace

    def note(handle):
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(state.os, "replace", lambda a, b: (events.append("renamed"), replace(a, b)))
    state.save(tmp_path / "state", 3, {"x": torch.ones(1)}, {}, keep=1)
    assert events == [
        *("file", "renamed", "folder"),  # the tensors
        *("file", "renamed", "folder"),  # run.json
        *("renamed", "folder"),  # the folder
        *("file", "renamed", "folder"),  # COMPLETE
    ]


def test_a_system_needs_no_warm_up_and_names_parts_by_their_first_name():
    task = SystemTask()
    assert task.first_sample() == 0
    assert task.part_of("mapping.layers.0.weight") == "mapping"
    assert task.identity() == task.extras() == {}
