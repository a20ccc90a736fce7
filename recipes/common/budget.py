"""Training that ends when it must: the learning rate follows the share of time or steps that is spent.

Every so often everything is saved, and a killed training goes on from there: the random numbers of a step depend on its
number alone, and the clock goes on from what was spent before.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from varsearch.errors import EvaluationError

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Budget:
    """Seconds and steps that a training may take; what is spent first ends it."""

    seconds: float = math.inf
    steps: float = math.inf

    def progress(self, seconds: float, step: int) -> float:
        """Share of the budget that is spent; the training ends at 1."""
        return max(seconds / self.seconds, step / self.steps)


@dataclass(frozen=True)
class Schedule:
    """How a training goes.

    Args:
        budget: when it ends.
        warm_up: steps until the learning rate is full; a cosine takes it to 0 as the budget is spent.
        clip: largest norm of the gradient.
        decay: of the moving average of the weights.
        save_seconds: time between two saves.
        processor: time is that of the processor, which other programs of the machine do not change, not the clock's.
        flat: share of the budget before the cosine begins; meanwhile the budget may be changed, and nothing is lost.
    """

    budget: Budget
    warm_up: int
    clip: float
    decay: float
    save_seconds: float
    processor: bool = False
    flat: float = 0.0

    def now(self) -> float:
        """Seconds since some start, which differs between processes."""
        return time.process_time() if self.processor else time.perf_counter()

    def factor(self, step: int, progress: float) -> float:
        """Share of the full learning rate."""
        falling = max(0.0, progress - self.flat) / (1 - self.flat)
        return min(1.0, (step + 1) / self.warm_up) * 0.5 * (1 + math.cos(math.pi * falling))


class Task(nn.Module, Generic[Network]):
    """A network, the data that it is trained on, and whatever else has to be saved, as buffers."""

    network: Network

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """What follows the gradient, at full learning rate."""
        raise NotImplementedError

    def loss(self, step: int, progress: float) -> Tensor:
        """Training loss of this step's batch."""
        raise NotImplementedError

    def judge(self, network: Network) -> str:
        """What the log says of the averaged network, which is in evaluation mode."""
        raise NotImplementedError


class Average(Generic[Network]):
    """Exponential moving average of a network's parameters, beside its current buffers.

    The first steps are averaged over fewer: a tenth of those that there were.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network, self.decay = copy.deepcopy(network).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, network: Network, step: int) -> None:
        """Takes in the weights after `step` steps."""
        weight = max(1 - self.decay, 10 / (9 + step))
        for own, parameter in zip(self.network.parameters(), network.parameters(), strict=True):
            own.lerp_(parameter, weight)
        for kept, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            kept.copy_(buffer)


class Pace:
    """How long the rest takes if it goes on as it went in this process."""

    def __init__(self, progress: float) -> None:
        self.progress, self.started = progress, time.perf_counter()

    def left(self, progress: float) -> str:
        """Time by the clock until the progress is 1."""
        gained = max(progress - self.progress, 1e-9)
        hours, minutes = divmod(round((time.perf_counter() - self.started) * (1 - progress) / gained / 60), 60)
        return f"{hours} h {minutes:02d} min to go"


class Training(Generic[Network]):
    """One training, from its checkpoint on if there is one.

    Args:
        name: how the log calls it.
        task: what is trained; it is on its device.
        rate: full learning rate.
        schedule: how it goes.
        checkpoint: the file that it is saved in.
    """

    def __init__(self, name: str, task: Task[Network], rate: float, schedule: Schedule, checkpoint: Path) -> None:
        self.name, self.task, self.rate, self.schedule, self.checkpoint = name, task, rate, schedule, checkpoint
        self.optimizer, self.average = task.optimizer(rate), Average(task.network, schedule.decay)
        self.step, self.spent, self.started = 0, 0.0, schedule.now()
        if checkpoint.exists():
            self._load()

    @property
    def seconds(self) -> float:
        """Time spent, that of earlier processes included as far as their work was saved."""
        return self.spent + self.schedule.now() - self.started

    def run(self) -> Network:
        """Trains until the budget is spent; the averaged network.

        Raises:
            EvaluationError: the loss is no number any more.
        """
        saved, pace = self.schedule.now(), Pace(self._progress())
        while (progress := self._progress()) < 1:
            loss = self._take_step(progress)
            if self.schedule.now() - saved >= self.schedule.save_seconds:
                self._report(progress, loss.item(), pace.left(self._progress()))
                self._save()
                saved = self.schedule.now()
        self._say(f"done after {self.step} steps and {self.seconds:.0f} s, {self.task.judge(self.average.network)}")
        return self.average.network

    def _progress(self) -> float:
        return self.schedule.budget.progress(self.seconds, self.step)

    def _take_step(self, progress: float) -> Tensor:
        torch.manual_seed(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * self.schedule.factor(self.step, progress)
        loss = self.task.loss(self.step, progress)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.task.parameters(), self.schedule.clip)
        self.optimizer.step()
        self.step += 1
        self.average.update(self.task.network, self.step)
        return loss

    def _report(self, progress: float, loss: float, left: str) -> None:
        if not math.isfinite(loss):
            raise EvaluationError(f"{self.name}: the loss is {loss} at step {self.step}; lower its learning rate")
        judged = self.task.judge(self.average.network)
        self._say(
            f"step {self.step}, {progress:.1%} of the budget, loss {loss:.4f}, {judged}; "
            f"{self.seconds / 3600:.2f} h spent, {left}"
        )

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def _save(self) -> None:
        state = {
            "task": self.task.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _load(self) -> None:
        device = next(self.task.parameters()).device
        state = torch.load(self.checkpoint, map_location=device, weights_only=True)
        self.task.load_state_dict(state["task"])
        self.average.network.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent = int(state["step"]), float(state["seconds"])
        self._say(f"goes on from step {self.step}")
