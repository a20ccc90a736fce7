"""A published system together with what does no harm to dense, which may then do none to the system either."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence

from varsearch.db import State, TrialRecord
from varsearch.measurement import METRICS, Measurement
from varsearch.policy import Policy
from varsearch.search.chances import domination
from varsearch.search.front import dense_trial
from varsearch.search.moves import effective
from varsearch.search.settings import RunSettings
from varsearch.space.changes import changes
from varsearch.space.units import Setting, compose
from varsearch.target import ModelSpec

LIKELY = 0.3
"""Least probability to dominate dense of what is added: of what loses nothing at all it is about one half."""

HARMLESS = 0.05
"""Least probability that a system loses less with something added than alone, for more of it to be tried."""


def combined(
    settings: RunSettings,
    spec: ModelSpec,
    rival: TrialRecord,
    trials: Sequence[TrialRecord],
    seen: Container[str],
    fits: Callable[[Policy], bool] = lambda policy: True,
) -> Policy | None:
    """The settings of `rival` and, where it sets nothing, those of the trial that is likeliest to dominate dense.

    This trusts what was measured of whole policies, where a surrogate sums up what is known of their parts. A trial
    that would leave settings of the system without effect, as a smaller model at its scales does, is not added, nor one
    that includes what already did harm to the system (`HARMLESS`).

    Args:
        settings: objectives and bounds.
        spec: the model's shape.
        rival: a published system; None is found for one that units cannot say.
        trials: of the run, dense among them.
        seen: digests of what was tried.
        fits: whether what is known of a policy without evaluating it speaks for it.
    """
    dense, own = dense_trial(trials), changes(rival.policy)
    assert dense is not None
    if own.rest:
        return None
    done = [t for t in sorted(trials, key=lambda t: t.number) if t.state is State.COMPLETE]
    others = [t for t in done if settings.is_feasible(t.values) and not changes(t.policy).rest]
    exact = {name: Measurement(metric=name, value=value) for name, value in dense.values.items()}
    shares = domination(settings, [t.metrics for t in others], exact)
    harmful = list(_harmful(settings, rival, done))
    for share, trial in sorted(zip(shares, others, strict=True), key=lambda pair: -pair[0]):
        if share < LIKELY:
            break
        genes = {setting.unit: setting for setting in (*changes(trial.policy).settings, *own.settings)}
        chosen = effective(genes.values())
        added = {*chosen} - {*own.settings}
        if not {*own.settings} <= {*chosen} or any(harm <= added for harm in harmful):
            continue
        policy = compose(spec, chosen)
        if policy.digest not in seen and fits(policy):
            return policy
    return None


def _harmful(settings: RunSettings, rival: TrialRecord, done: Sequence[TrialRecord]) -> Iterator[set[Setting]]:
    """What trials add to the settings of `rival` and surely lose more quality than it."""
    quality = tuple(name for name in settings.objectives if METRICS[name].kind == "quality")
    judged, own = settings.model_copy(update={"objectives": quality}), {*changes(rival.policy).settings}
    found = [(trial, changes(trial.policy)) for trial in done if quality]
    more = [(trial.metrics, {*c.settings} - own) for trial, c in found if not c.rest and own < {*c.settings}]
    shares = domination(judged, [metrics for metrics, _ in more], rival.metrics) if more else []
    return (added for share, (_, added) in zip(shares, more, strict=True) if share < HARMLESS)
