"""One step of the training loop: clipping, AdamW, and the exponential average of the weights."""

import contextlib

import pytest
import torch
from torch import nn

from stillmotion.training.engine.loop import Loop, Task, fit, learning_rate
from stillmotion.training.plans.run import TrainTable


class Sum(Task):
    """Its gradient is 3 in each of the four weights, a norm of 6."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 4.0]))

    def forward(self, samples):
        return {"loss": 3 * self.weight.sum()}


@pytest.fixture
def run(tmp_path):
    return TrainTable(out=tmp_path / "run", steps=30, batch=2, lr=1e-2, warmup=1, lr_decay_share=0.0, save_every=1000)


def changed(run, **values):
    return TrainTable(**(vars(run) | values))


@pytest.mark.parametrize(("grad_clip", "norm"), [(1.0, 1.0), (4.0, 4.0), (6.5, 6.0), (100.0, 6.0)])
def test_the_norm_of_the_gradient_is_at_most_the_threshold(run, grad_clip, norm):
    """Adam's step does not depend on the size of a constant gradient g, so its averages of g and g^2 are compared."""
    task = Sum()
    loop = Loop(task, changed(run, grad_clip=grad_clip, beta2=0.95))
    loop.advance()
    inner = loop.optimizer.state[task.weight]
    assert inner["exp_avg"].norm().item() == pytest.approx((1 - 0.9) * norm, rel=1e-4)
    torch.testing.assert_close(inner["exp_avg_sq"], torch.full((4,), (1 - 0.95) * norm**2 / 4), rtol=1e-4, atol=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_a_step_is_that_of_adamw(run, weight_decay):
    """The first step of a gradient g moves every weight by lr * sign(g), after it has shrunk by lr * weight_decay."""
    task = Sum()
    before = task.weight.detach().clone()
    Loop(task, changed(run, weight_decay=weight_decay)).advance()
    expected = before * (1 - run.lr * weight_decay) - run.lr
    torch.testing.assert_close(task.weight.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ema", [0.6, 0.9999])
def test_the_average_follows_the_weights_slower_and_slower_up_to_ema(run, ema):
    """mean_n = d mean_{n-1} + (1 - d) w_n with d = min(ema, n / (n + 10)), from the first weights on."""
    task = Sum()
    means, weights = [task.weight.detach().clone()], [task.weight.detach().clone()]

    def note(_step, average):
        means.append(average["weight"].clone())
        weights.append(task.weight.detach().clone())

    fit(task, changed(run, ema=ema), on_step=note)
    assert len(means) == 1 + run.steps
    mean = means[0].double()
    for n in range(1, run.steps + 1):
        decay = min(ema, n / (n + 10))
        mean = decay * mean + (1 - decay) * weights[n].double()
        torch.testing.assert_close(means[n].double(), mean, rtol=1e-5, atol=1e-6)
    assert (weights[-1] - weights[0]).abs().min() > 0.2  # there is something to average


def test_a_skipped_step_changes_neither_weights_nor_average(run):
    class Broken(Sum):
        def forward(self, samples):
            return {"loss": super().forward(samples)["loss"] * (float("inf") if samples[0] == 2 else 1.0)}

    task = Broken()
    loop = Loop(task, run)
    loop.advance()
    weight, average = task.weight.detach().clone(), loop.averages()["weight"].clone()
    loop.advance()
    assert torch.equal(task.weight.detach(), weight)
    assert torch.equal(loop.averages()["weight"], average)
    assert loop.counts.tolist() == [2, 1, 1, 1]
    loop.advance()
    assert loop.counts.tolist() == [3, 2, 1, 0]
    assert not torch.equal(task.weight.detach(), weight)


def test_every_step_has_the_learning_rate_of_its_number(run):
    run = changed(run, warmup=5, lr_decay_share=0.5, steps=10)
    loop = Loop(Sum(), run)
    for step in range(run.steps):
        loop.advance()
        assert [group["lr"] for group in loop.optimizer.param_groups] == [learning_rate(run, step)]


def test_without_a_warm_up_the_first_step_has_the_whole_learning_rate(run):
    assert learning_rate(changed(run, warmup=0), 0) == run.lr
    assert learning_rate(changed(run, warmup=1), 0) == run.lr
    assert learning_rate(changed(run, warmup=2), 0) == run.lr / 2


def test_processes_exchange_gradients_once_a_step_with_the_last_part(run, monkeypatch):
    events = []

    class Noted(Sum):
        def forward(self, samples):
            events.append(samples)
            return super().forward(samples)

    @contextlib.contextmanager
    def no_sync(_model):
        events.append("no exchange")
        yield
        events.append("end")

    loop = Loop(Noted(), changed(run, batch=5, micro=2))
    monkeypatch.setattr(loop.accelerator, "no_sync", no_sync)
    loop.advance()
    assert events == ["no exchange", [0, 1], "end", "no exchange", [2, 3], "end", [4]]


@pytest.mark.parametrize("micro", [0, 1, 2, 5])
def test_a_part_counts_by_its_samples(run, micro):
    """The gradient is that of the mean over all samples, also where the last part is smaller."""

    class Squares(Sum):
        def forward(self, samples):
            return {"loss": (torch.tensor(samples).float()[:, None] * self.weight).mean(0).sum()}

    task = Squares()
    loop = Loop(task, changed(run, batch=5, micro=micro, grad_clip=100.0))
    loop.advance()
    torch.testing.assert_close(loop.optimizer.state[task.weight]["exp_avg"], torch.full((4,), 0.1 * 2.0))
