"""When a search ends: budget, time, and a hypervolume that no longer grows."""

from __future__ import annotations

import math
import time
from collections import deque

from varsearch.errors import UsageError

GROWTH = 1e-3
"""Relative growth of the hypervolume that patience asks for."""


def check_limits(budget: int, minutes: float | None, patience: int | None) -> None:
    """Raises `UsageError` for limits that leave nothing to evaluate."""
    if budget < 1:
        raise UsageError(f"the budget must be at least 1 trial, got {budget}")
    if minutes is not None and not 0 < minutes < math.inf:
        raise UsageError(f"the time must be a positive number of minutes, got {minutes}")
    if patience is not None and patience < 1:
        raise UsageError(f"the patience must be at least 1 evaluation, got {patience}")


class Limits:
    """What a run may spend.

    Args:
        budget: evaluations in total.
        minutes: from now on.
        patience: evaluations that may pass without growth of the hypervolume. What a search starts
            from is tried in any case, so they count from the last of it; and they are those of the
            run's history, so that an interrupted run ends where it would have ended.

    Raises:
        UsageError: they leave nothing to evaluate.
    """

    def __init__(
        self, budget: int, minutes: float | None = None, patience: int | None = None
    ) -> None:
        check_limits(budget, minutes, patience)
        self.budget, self.patience = budget, patience
        self._deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._volumes: deque[tuple[float, float | None]] = deque()  # evaluations, hypervolume

    @property
    def seconds_left(self) -> float:
        """Of the time; infinite without a limit."""
        return max(self._deadline - time.monotonic(), 0.0)

    def allow(self, begun: float) -> bool:
        """Whether another evaluation may begin; `begun` counts stopped ones by their share."""
        # Shares of stopped trials add up with rounding errors.
        fits = begun + 1 <= self.budget + 1e-9
        return fits and self.seconds_left > 0 and not self.plateau

    def note(self, volume: float | None, spent: float, *, start: bool) -> None:
        """The front has this hypervolume after so many evaluations, the last of a start or not."""
        if start:
            # Patience counts from the last start.
            self._volumes.clear()
        self._volumes.append((spent, volume))
        # Only the last volume before the span of patience is needed.
        while len(self._volumes) > 1 and self._patient(self._volumes[1][0]):
            self._volumes.popleft()

    def _patient(self, since: float) -> bool:
        """Whether as many evaluations as patience allows were spent since."""
        return self.patience is not None and self._volumes[-1][0] - since >= self.patience - 1e-9

    @property
    def plateau(self) -> bool:
        """Whether patience is spent; never while the hypervolume is not known."""
        if not self._volumes or not self._patient(self._volumes[0][0]):
            return False
        (_, first), (_, last) = self._volumes[0], self._volumes[-1]
        return first is not None and last is not None and last <= first * (1 + GROWTH)
