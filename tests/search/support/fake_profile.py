"""Evaluators of a profile that invent their numbers, count their calls and can be interrupted."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.search.support.profiles import BATCH, effect
from varsearch.policy import Policy
from varsearch.search.sensitivity import profile, side_by_side
from varsearch.sensitivity_profile import Cost, Effect


class Calls(list[str]):
    """What was measured: "effect", "predicted" or "end_to_end". Ctrl-C comes at call `stop`."""

    stop: int | None = None

    def note(self, what: str) -> None:
        if len(self) == self.stop:
            raise KeyboardInterrupt
        self.append(what)


def fake_evaluators(patch: pytest.MonkeyPatch) -> Calls:
    """Puts them in the place of the real ones."""
    calls = Calls()

    def cost(policy: Policy) -> Cost:
        share = random.Random(policy.digest).uniform(0.5, 1)
        return BATCH.model_copy(update={name: share * value for name, value in dict(BATCH).items()})

    class Quality:
        def __init__(self, *_: Any) -> None:
            pass

        def effect(self, policy: Policy) -> Effect:
            calls.note("effect")
            return effect(random.Random(policy.digest).random())

    class Costs:
        def __init__(self, *_: Any) -> None:
            pass

        def predicted(self, policy: Policy) -> Cost:
            calls.note("predicted")
            return cost(policy)

        def end_to_end(self, policy: Policy) -> Cost:
            calls.note("end_to_end")
            return cost(policy)

    patch.setattr(side_by_side, "COPIES", 1)  # one call after the other, so that Ctrl-C comes at the call it should
    patch.setattr(profile, "SensitivityEvaluator", Quality)
    patch.setattr(profile, "CostEvaluator", Costs)
    return calls
