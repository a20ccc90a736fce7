"""Trainings that end in time, on a clock that the test moves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recipes.common import budget
from recipes.common.budget import Average, Budget, Schedule, Task, Training
from recipes.common.data import Passes
from varsearch.errors import EvaluationError

RATE = 0.5


class Line(Task[nn.Linear]):
    """Every step takes two seconds of the clock."""

    def __init__(self, clock: Clock, broken_at: int = -1) -> None:
        torch.manual_seed(7)
        super().__init__(nn.Linear(2, 1))
        self.clock, self.broken_at, self.rates, self.draws = clock, broken_at, [], []

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        self.sgd = torch.optim.SGD(self.network.parameters(), lr=rate, momentum=0.5)
        return self.sgd

    def loss(self, step: int, progress: float) -> Tensor:
        self.clock.now += 2
        self.rates.append(self.sgd.param_groups[0]["lr"])
        self.draws.append(torch.rand(()).item())
        x = torch.rand(8, 2)
        loss: Tensor = (self.network(x) - x.sum(1, keepdim=True)).square().mean()
        return loss * math.nan if step == self.broken_at else loss

    def judge(self, network: nn.Linear) -> str:
        assert not network.training
        return "judged"


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(budget, "time", found)
    return found


def schedule(seconds: float = math.inf, steps: float = math.inf, save_seconds: float = 10) -> Schedule:
    return Schedule(Budget(seconds, steps), warm_up=4, clip=1.0, decay=0.9, save_seconds=save_seconds)


def test_the_time_ends_a_training_after_a_whole_schedule(clock: Clock, tmp_path: Path) -> None:
    task = Line(clock)
    Training("line", task, RATE, schedule(seconds=200), tmp_path / "c").run()
    assert len(task.rates) == 100 and clock.now == 200
    assert task.rates[:4] == sorted(task.rates[:4]) and task.rates[4:] == sorted(task.rates[4:], reverse=True)
    assert task.rates[0] == pytest.approx(RATE / 4) and max(task.rates) > 0.95 * RATE
    assert task.rates[50] == pytest.approx(RATE / 2) and task.rates[-1] < 1e-3


def test_the_steps_end_a_training_too(clock: Clock, tmp_path: Path) -> None:
    task = Line(clock)
    Training("line", task, RATE, schedule(seconds=1e9, steps=7), tmp_path / "c").run()
    assert len(task.rates) == 7


def test_the_steps_of_a_flat_training_may_be_changed_before_its_rate_falls(clock: Clock, tmp_path: Path) -> None:
    rates = {}
    for steps in (40, 60):
        task = Line(clock)
        how = replace(schedule(steps=steps), flat=0.5)
        Training("line", task, RATE, how, tmp_path / str(steps)).run()
        rates[steps] = task.rates
        assert set(task.rates[4 : steps // 2]) == {RATE} and task.rates[steps // 2 + 1] < RATE
        assert task.rates[-1] < RATE / 50
    assert rates[40][:20] == rates[60][:20]


def test_a_training_says_how_long_the_rest_takes(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Training("line", Line(clock), RATE, schedule(steps=60), tmp_path / "c").run()
    lines = capsys.readouterr().err.splitlines()
    # Five steps of two seconds between saves; after 30 of 60 steps one minute is left.
    assert lines[5].startswith("line: step 30, ") and lines[5].endswith("; 0.02 h spent, 0 h 01 min to go")
    assert lines[-2].endswith("0.03 h spent, 0 h 00 min to go")


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(clock: Clock, tmp_path: Path) -> None:
    whole = Training("line", Line(clock), RATE, schedule(seconds=60), tmp_path / "whole")
    expected = whole.run()
    clock.now = 0
    first = Line(clock, broken_at=17)
    with pytest.raises(EvaluationError, match="line: the loss is nan at step 20"):
        Training("line", first, RATE, schedule(seconds=60), tmp_path / "c").run()
    # The last save was after step 15, at 30 seconds; meanwhile the machine stood still for a day.
    clock.now = 86400
    second = Line(clock)
    training = Training("line", second, RATE, schedule(seconds=60), tmp_path / "c")
    assert (training.step, training.seconds) == (15, 30)
    found = training.run()
    assert len(second.draws) == 15 and second.draws[0] == first.draws[15]
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_the_average_follows_its_decay() -> None:
    network = nn.BatchNorm1d(1)
    average = Average(network, decay=0.75)
    with torch.no_grad():
        for step, value in enumerate((3.0, 5.0, 9.0), start=50):
            network.weight.fill_(value)
            network.get_buffer("running_mean").fill_(value)
            average.update(network, step)
    assert average.network.weight.item() == pytest.approx(0.75 * (0.75 * (0.75 * 1 + 0.25 * 3) + 0.25 * 5) + 0.25 * 9)
    assert average.network.get_buffer("running_mean").item() == 9
    average.update(network, step=1)
    assert average.network.weight.item() == 9, "the first weights count for nothing"


def test_batches_are_whole_passes_and_depend_on_the_step_alone() -> None:
    device = torch.device("cpu")
    passes = Passes(11, 4, device)
    drawn = [passes.batch(step) for step in range(4)]
    assert len(set(torch.cat(drawn[:2]).tolist())) == 8 and len(set(torch.cat(drawn[2:]).tolist())) == 8
    assert drawn[0].tolist() != drawn[2].tolist()
    assert torch.equal(Passes(11, 4, device).batch(3), drawn[3])
