"""One cost model serves whoever asks in a process, and remembers."""

from __future__ import annotations

from functools import partial

import pytest

from varsearch.evaluators import cost_model
from varsearch.evaluators.cost_model import predicted_protocol
from varsearch.evaluators.costs import CostEvaluator, exact_costs, predicting
from varsearch.evaluators.trace import trace
from varsearch.evaluators.worker import WorkerConfig
from varsearch.measurement import Job
from varsearch.models import zoo
from varsearch.policy import Policy
from varsearch.target import Target

PROTOCOL = predicted_protocol(Target(device="4090", dtype="float16", batch_size=3))


def test_what_a_proposal_traced_is_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Policy] = []

    def counted(*args: object) -> object:
        traced.append(args[1])  # type: ignore[arg-type]
        return trace(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(cost_model, "trace", counted)
    spec = zoo.manifest("mnist").spec()
    policy = Policy.dense(spec.n_layers, len(spec.scales))
    values = exact_costs("mnist", PROTOCOL)(policy)
    asked = len(traced)
    assert asked == 2, "the policy, and dense to compare with"
    job = Job(number=0, policy=policy, quality=None, speed=PROTOCOL)
    outcome = WorkerConfig(model="mnist", device="cpu", threads=1).make().evaluate(job)
    assert outcome.speed is not None and outcome.speed.values == values
    assert CostEvaluator("mnist", PROTOCOL).predicted(policy).peak_bytes == values["peak_bytes"]
    assert len(traced) == asked
    other = partial(predicting, "mnist", predicted_protocol(Target(device="4090", dtype="float16", batch_size=4)))
    assert other()(policy).values["peak_bytes"] > values["peak_bytes"] and len(traced) == asked + 2
