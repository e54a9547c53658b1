"""The training loop: a resumed run equals an uninterrupted one bit for bit, and errors are reported."""

import json
import os
import signal
from collections.abc import Container
from dataclasses import replace

import pytest
import torch
from torch import nn

from stillmotion.training.engine import state
from stillmotion.training.engine.loop import (
    ChangedRun,
    NonFiniteLoss,
    check_identity,
    fit,
    learning_rate,
    sample_generator,
)
from stillmotion.training.engine.task import Task
from stillmotion.training.plans.run import TrainTable


class Line(Task):
    """y = 3 x - 1 with noise."""

    def __init__(self, poison: Container[int] = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.seen: list[int] = []
        self.poison = poison

    def forward(self, samples):
        self.seen += samples
        noise = torch.stack([torch.randn(2, generator=sample_generator(7, k)) for k in samples])
        x, y = noise[:, :1], 3 * noise[:, :1] - 1 + 0.01 * noise[:, 1:]
        loss = (self.net(x) - y).square().mean()
        return {"loss": loss * float("nan") if any(k in self.poison for k in samples) else loss}


@pytest.fixture
def run(tmp_path):
    return TrainTable(out=tmp_path / "run", steps=40, batch=8, lr=1e-2, warmup=2, save_every=10, log_every=5)


def test_training_lowers_the_loss(run):
    task = Line()
    before = task(list(range(100)))["loss"].item()
    fit(task, replace(run, steps=200))
    assert task(list(range(100)))["loss"].item() < 0.2 * before


def test_resumed_equals_uninterrupted_bit_for_bit(run, tmp_path):
    whole = fit(Line(), run)
    first = replace(run, out=tmp_path / "cut", steps=40)

    class Stop(Exception):
        pass

    def stop(_):
        raise Stop

    with pytest.raises(Stop):
        fit(Line(), first, on_save=stop)  # fails right after the state of step 10 is written
    resumed_task = Line()
    resumed = fit(resumed_task, first)
    assert resumed_task.seen == list(range(80, 320))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_each_sample_is_taken_once_and_in_order(run):
    task = Line()
    fit(task, run)
    assert task.seen == list(range(run.steps * run.batch))


def test_frozen_parts_stay_and_are_not_saved(run):
    task = Line()
    before = {k: v.clone() for k, v in task.frozen.state_dict().items()}
    average = fit(task, run)
    assert all(torch.equal(v, task.frozen.state_dict()[k]) for k, v in before.items())
    assert not any("frozen" in name for name in average)


def test_a_nan_stops_the_run_and_keeps_the_last_state(run):
    with pytest.raises(NonFiniteLoss, match="step 15"):
        fit(Line(poison={15 * run.batch}), replace(run, bad_steps=0))
    (newest,) = state.states(run.out / "state")
    assert newest.name == "step-00000010"
    task, again = Line(), replace(run, steps=10)
    assert all(v.isfinite().all() for v in fit(task, again).values())
    assert task.seen == []


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch": 4}, {"lr": 1e-3}, {"ema": 0.9}])
def test_a_resume_under_another_plan_is_refused_unless_it_is_allowed(run, change):
    fit(Line(), run)
    ((name, value),) = change.items()
    with pytest.raises(ChangedRun, match=rf"train\.{name} was .* is now {value}"):
        fit(Line(), replace(run, **change))
    fit(Line(), replace(run, **change), allow=[f"train.{name}"])


def test_a_run_can_be_made_longer_and_saved_more_often(run):
    fit(Line(), run)
    task = Line()
    fit(task, replace(run, steps=50, save_every=1, micro=2, keep=1))
    assert task.seen == list(range(40 * run.batch, 50 * run.batch))


def test_changed_data_or_base_is_refused_and_named(run):
    class Fed(Line):
        def __init__(self, data):
            super().__init__()
            self.data = data

        def identity(self):
            return {"data": self.data, "base": "aa"}

    fit(Fed("12"), run)
    with pytest.raises(ChangedRun, match="data was 12, is now 34"):
        fit(Fed("34"), run)
    with pytest.raises(ChangedRun, match="base was aa, is now absent"):
        fit(Line(), run)


def test_a_state_of_another_model_is_refused(run):
    fit(Line(), run)

    class Other(Line):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(1, 1)

    with pytest.raises(ChangedRun, match="another model"):
        fit(Other(), run)
    with pytest.raises(ChangedRun, match="another model"):
        fit(Other(), run, allow=["model"])


def test_the_learning_rate_warms_up_stays_and_ends_at_zero(run):
    plan = replace(run, steps=100, warmup=10, lr_decay_share=0.5, lr=1.0)
    rates = [learning_rate(plan, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20:50] == [1.0] * 30
    assert rates[50] == 1.0 > rates[75] == 0.5 > rates[99] == pytest.approx(0.02)


def test_the_learning_rate_can_end_above_zero(run):
    plan = replace(run, steps=100, warmup=1, lr_decay_share=1.0, lr=1e-4, lr_end=1e-5)
    rates = [learning_rate(plan, s) for s in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[50] == pytest.approx(5.5e-5)
    assert rates[100] == pytest.approx(1e-5)


def test_only_whole_states_are_left_and_only_the_newest(run):
    fit(Line(), run)
    assert sorted(p.name for p in (run.out / "state").iterdir()) == ["step-00000030", "step-00000040"]
    assert all((p / state.COMPLETE).exists() for p in (run.out / "state").iterdir())
    assert state.record(run.out / "state" / "step-00000040")["step"] == 40


@pytest.mark.parametrize("folder", ["partial-step-00000050", "step-00000050"])
def test_the_remains_of_a_killed_save_are_not_a_state(run, folder):
    fit(Line(), run)
    (run.out / "state" / folder).mkdir()
    (run.out / "state" / folder / "__0_0.distcp").write_bytes(b"half")
    task = Line()
    fit(task, replace(run, steps=50))
    assert task.seen[0] == 40 * run.batch
    assert len(state.states(run.out / "state")) == len(list((run.out / "state").iterdir())) == 2


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(run, caplog):
    bad = {10 * run.batch, 11 * run.batch, 20 * run.batch}
    average = fit(Line(poison=bad), run)
    assert all(v.isfinite().all() for v in average.values())
    assert json.loads((run.out / "log.jsonl").read_text().splitlines()[-1])["skipped_steps"] == 3
    assert "step 11: the gradient is not finite; the step is skipped (2 in a row)" in caplog.text


def test_skipped_steps_in_a_row_are_counted_across_a_resume(run):
    bad = {k * run.batch for k in range(9, 13)}
    fit(Line(poison=bad), replace(run, steps=10))
    with pytest.raises(NonFiniteLoss, match=r"step 12: .* 4 times in a row"):
        fit(Line(poison=bad), run)


def test_a_micro_batch_changes_memory_and_not_the_result(run):
    whole = fit(Line(), run)
    parts = fit(Line(), replace(run, out=run.out / "micro", micro=3))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6)


def test_a_stop_signal_saves_at_the_next_step_and_the_run_resumes_there(run, tmp_path):
    whole = fit(Line(), run)
    cut = replace(run, out=tmp_path / "cut", save_every=1000)

    def ask(step, _average):
        if step == 17:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit, match="stopped at step 18"):
        fit(Line(), cut, on_step=ask)
    assert [p.name for p in state.states(cut.out / "state")] == ["step-00000018"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = fit(Line(), cut)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_log_of_a_resumed_run_has_each_step_once(run):
    fit(Line(), replace(run, steps=20))
    with (run.out / "log.jsonl").open("a") as log:
        log.write('{"step": 25, "loss": 1}\n{"ste')
    fit(Line(), run)
    steps = [json.loads(line)["step"] for line in (run.out / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(5, 45, 5))


def test_the_figures_go_to_tensorboard_too(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(Line(), run)
    events = EventAccumulator(str(run.out / "tensorboard"))
    events.Reload()
    logged = [json.loads(line)["loss"] for line in (run.out / "log.jsonl").read_text().splitlines()]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(logged)


def test_the_state_that_a_task_adds_is_resumed(run, tmp_path):
    class Counting(Line):
        def __init__(self):
            super().__init__()
            self.memory = torch.zeros(3)

        def extras(self):
            return {"memory": self.memory}

        def after_step(self, applied):
            self.memory.copy_(torch.cat([self.memory[1:], torch.tensor([float(max(self.seen))])]))

    whole = Counting()
    fit(whole, run)
    cut = replace(run, out=tmp_path / "cut")
    fit(Counting(), replace(cut, steps=20))
    resumed = Counting()
    fit(resumed, replace(cut))
    assert torch.equal(whole.memory, resumed.memory)


def test_a_state_that_lacks_a_new_setting_resumes_with_the_old_behaviour(tmp_path):
    old = {"train.seed": "0"}
    check_identity(old, {"train.seed": "0", "train.beta2": "0.99"}, tmp_path)
    with pytest.raises(ChangedRun, match=r"train\.beta2 was 0\.99, is now 0\.999"):
        check_identity(old, {"train.seed": "0", "train.beta2": "0.999"}, tmp_path)


def test_a_state_that_calls_a_setting_by_its_former_name_is_resumed(tmp_path):
    old = {"train.decay": "0.4", "train.clip": "1.0", "train.beta2": "0.99"}
    now = {"train.lr_decay_share": "0.4", "train.grad_clip": "1.0", "train.beta2": "0.99"}
    check_identity(old, now, tmp_path)
    with pytest.raises(ChangedRun, match=r"train\.grad_clip was 1\.0, is now 2\.0"):
        check_identity(old, now | {"train.grad_clip": "2.0"}, tmp_path)


def test_without_an_average_the_weights_are_it_and_nothing_is_held_twice(run):
    task = Line()
    run = replace(run, ema=0.0)
    average = fit(task, run)
    weights = {name: p for name, p in task.named_parameters() if p.requires_grad}
    assert {name: v.data_ptr() for name, v in average.items()} == {n: p.data_ptr() for n, p in weights.items()}
    again = Line()
    result = fit(again, run)  # loaded from the state
    assert all(torch.equal(result[name], value) for name, value in average.items())
