"""A published system together with what does no harm to dense, which may then do none to the system either."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from varsearch.db import State, TrialRecord
from varsearch.measurement import METRICS, Measurement
from varsearch.policy import Policy
from varsearch.search.core.dominance import dominated, domination
from varsearch.search.core.objectives import dense_trial
from varsearch.search.core.settings import RunSettings
from varsearch.space.settings import Setting, composable, effective, settings_of
from varsearch.target import ModelSpec

LIKELY = 0.3
"""Least probability to dominate dense of what is added: of what loses nothing at all it is about one half."""

HARMFUL = 0.95
"""Probability that a system loses more with something added than alone, from which on nothing that includes it is."""


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
    that would leave settings of the system without effect, as a smaller model at its scales does, is not added. Nor
    is one that includes what already did harm to the system (`HARMFUL`), or that contradicts it, as windows do where
    the system chooses keys. Where no quality counts, none is.

    Args:
        settings: objectives and bounds.
        spec: the model's shape.
        rival: a published system.
        trials: of the run, dense among them.
        seen: digests of what was tried.
        fits: whether what is known of a policy without evaluating it speaks for it.
    """
    dense, system = dense_trial(trials), settings_of(rival.policy)
    assert dense is not None
    quality = tuple(m for m in dict.fromkeys((*settings.objectives, *settings.bounds)) if METRICS[m].kind == "quality")
    if not quality:
        return None
    done = [t for t in sorted(trials, key=lambda t: t.number) if t.state is State.COMPLETE]
    others = [t for t in done if settings.is_feasible(t.values)]
    exact = {name: Measurement(metric=name, value=value) for name, value in dense.values.items()}
    judged = settings.model_copy(update={"objectives": tuple(dict.fromkeys((*settings.objectives, *quality)))})
    shares = domination(judged, [t.metrics for t in others], exact)
    own = {*effective(system)}
    harmful = _harmful(settings.model_copy(update={"objectives": quality}), rival, own, done)
    for share, trial in sorted(zip(shares, others, strict=True), key=lambda pair: -pair[0]):
        if share < LIKELY:
            break
        genes = {setting.unit: setting for setting in (*settings_of(trial.policy), *system)}
        chosen = effective(genes.values())
        if not own <= {*chosen} or any(harm <= {*chosen} for harm in harmful):
            continue
        policy = composable(spec, chosen)
        if policy is not None and policy.digest not in seen and fits(policy):
            return policy
    return None


def _harmful(
    judged: RunSettings, rival: TrialRecord, own: set[Setting], done: Sequence[TrialRecord]
) -> list[set[Setting]]:
    """The settings of trials that set all that the system does, and surely lose more by the objectives of `judged`."""
    found = ((trial.metrics, {*effective(settings_of(trial.policy))}) for trial in done)
    more = [(metrics, chosen) for metrics, chosen in found if own < chosen]
    shares = dominated(judged, [metrics for metrics, _ in more], rival.metrics)
    return [chosen for share, (_, chosen) in zip(shares, more, strict=True) if share > HARMFUL]
