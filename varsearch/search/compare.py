"""Policies side by side, under one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from varsearch.db import Store
from varsearch.errors import EvaluationError, PolicyError
from varsearch.evaluators.worker import PolicyWorker
from varsearch.library import index, load_policy
from varsearch.measurement import Job, Measurement
from varsearch.policy import Policy
from varsearch.search.settings import RunSettings
from varsearch.target import ModelSpec

Row = dict[str, Measurement]


def named_policies(
    names: Sequence[str] | None, seeds: Mapping[str, Policy], spec: ModelSpec, folder: Path | None
) -> dict[str, Policy]:
    """Policies by name: of a seed, a policy file, or a library reference; all seeds without names.

    Raises:
        PolicyError: neither a seed, nor a file, nor in the library; or a file that was made for another model.
    """
    if not names:
        return dict(seeds)
    return {name: seeds[name] if name in seeds else _filed(name, seeds, spec, folder) for name in names}


def _filed(name: str, seeds: Mapping[str, Policy], spec: ModelSpec, folder: Path | None) -> Policy:
    try:
        file = load_policy(name, folder)
    except PolicyError as error:
        if Path(name).exists() or name in index(folder):
            raise
        raise PolicyError(f"{error}; hand-made policies are {', '.join(seeds)}") from None
    file.check_model(spec)
    return file.policy


def compare(
    policies: Mapping[str, Policy],
    settings: RunSettings,
    worker: PolicyWorker,
    store: Store,
    on_row: Callable[[str, bool], None] = lambda name, reused: None,
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
        on_row(name, quality is not None and speed is not None)
    return rows
