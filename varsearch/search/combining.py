"""A published system together with what does no harm to dense, which may then do none to the system either."""

from __future__ import annotations

from collections.abc import Container, Sequence

from varsearch.db import State, TrialRecord
from varsearch.measurement import Measurement
from varsearch.policy import Policy
from varsearch.search.chances import domination
from varsearch.search.front import dense_trial
from varsearch.search.moves import effective
from varsearch.search.settings import RunSettings
from varsearch.space.changes import changes
from varsearch.space.units import compose
from varsearch.target import ModelSpec

LIKELY = 0.3
"""Least probability to dominate dense of what is added: of what loses nothing at all it is about one half."""


def combined(
    settings: RunSettings, spec: ModelSpec, rival: TrialRecord, trials: Sequence[TrialRecord], seen: Container[str]
) -> Policy | None:
    """The settings of `rival` and, where it sets nothing, those of the trial that is likeliest to dominate dense.

    This trusts what was measured of whole policies, where a surrogate sums up what is known of their parts.

    Args:
        settings: objectives.
        spec: the model's shape.
        rival: a published system; None is found for one that units cannot say.
        trials: of the run, dense among them.
        seen: digests of what was tried.
    """
    dense, own = dense_trial(trials), changes(rival.policy)
    assert dense is not None
    if own.rest:
        return None
    others = [t for t in trials if t.state is State.COMPLETE and not changes(t.policy).rest]
    exact = {name: Measurement(metric=name, value=value) for name, value in dense.values.items()}
    shares = domination(settings, [t.metrics for t in others], exact)
    for share, trial in sorted(zip(shares, others, strict=True), key=lambda pair: -pair[0]):
        if share < LIKELY:
            break
        genes = {setting.unit: setting for setting in (*changes(trial.policy).settings, *own.settings)}
        policy = compose(spec, effective(genes.values()))
        if policy.digest not in seen:
            return policy
    return None
