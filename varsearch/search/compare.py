"""Policies side by side, under one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from varsearch.db import Store
from varsearch.errors import EvaluationError
from varsearch.evaluators.worker import PolicyWorker
from varsearch.measurement import Job, Measurement
from varsearch.policy import Policy
from varsearch.search.settings import RunSettings

Row = dict[str, Measurement]


def compare(
    policies: Mapping[str, Policy],
    settings: RunSettings,
    worker: PolicyWorker,
    store: Store,
    on_row: Callable[[str, Row], None] = lambda name, row: None,
) -> dict[str, Row]:
    """Metric name to measurement, for each policy; what the store knows already is not evaluated again.

    Raises:
        EvaluationError: a policy gave no usable number; the message names it.
    """
    rows: dict[str, Row] = {}
    for number, (name, policy) in enumerate(policies.items()):
        quality = store.find("quality", policy.digest, settings.fingerprint, settings.quality.digest)
        speed = store.find("speed", policy.digest, settings.fingerprint, settings.speed.digest)
        outcome = worker.evaluate(Job(number=number, policy=policy, quality=quality, speed=speed))
        if outcome.quality is None or outcome.speed is None:
            raise EvaluationError(f"{name}: {outcome.error}")
        evidence = [store.save(outcome.quality), store.save(outcome.speed)]
        rows[name] = {m.metric: m for e in evidence for m in e.measurements}
        on_row(name, rows[name])
    return rows
