"""The loop: resumed is the same as never stopped, bit for bit; what is wrong is said."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from stillmotion.training.engine import NonFiniteLoss, Run, Task, fit, learning_rate, sample_generator


class Line(Task):
    """y = 3 x - 1 with noise."""

    def __init__(self, poison: int | None = None) -> None:
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
        return {"loss": loss * float("nan") if self.poison in samples else loss}


@pytest.fixture
def run(tmp_path):
    return Run(out=tmp_path / "run", steps=40, batch=8, lr=1e-2, warmup=2, save_every=10, log_every=5)


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
        fit(Line(), first, on_save=stop)  # falls over right after the state of step 10 is written
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
        fit(Line(poison=15 * run.batch), run)
    state = torch.load(run.out / "state.pt", weights_only=True)
    assert state["step"] == 10
    assert all(v.isfinite().all() for v in state["weights"].values())


@pytest.mark.parametrize(("change", "word"), [({"seed": 1}, "seed"), ({"batch": 4}, "batch")])
def test_a_resume_under_another_plan_is_refused(run, change, word):
    fit(Line(), run)
    with pytest.raises(ValueError, match=word):
        fit(Line(), replace(run, **change))


def test_a_state_of_another_model_is_refused(run):
    fit(Line(), run)

    class Other(Line):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(1, 1)

    with pytest.raises(ValueError, match="another model"):
        fit(Other(), run)


def test_the_learning_rate_warms_up_stays_and_ends_at_zero(run):
    plan = replace(run, steps=100, warmup=10, decay=0.5, lr=1.0)
    rates = [learning_rate(plan, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20:50] == [1.0] * 30
    assert rates[50] == 1.0 > rates[75] == 0.5 > rates[99] == pytest.approx(0.02)


def test_no_half_state_is_left(run):
    fit(Line(), run)
    assert sorted(p.name for p in run.out.iterdir()) == ["log.jsonl", "state.pt"]
