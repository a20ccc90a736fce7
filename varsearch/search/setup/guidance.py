"""What a run's proposals may know, and what it starts from: with a profile where one pays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from varsearch.errors import UsageError
from varsearch.evaluators.costs import exact_costs, exact_memory
from varsearch.measurement import Origin, SpeedProtocol
from varsearch.models import zoo
from varsearch.policy import Policy
from varsearch.profile import Profile
from varsearch.search.core.source import DENSE, WARM
from varsearch.search.sampler.base import MakeCostFunction, SideInformation
from varsearch.search.sensitivity.profile import OnStep, known_profile, profile_refusal, profiled
from varsearch.search.sensitivity.warm_start import WarmStart, warm_starts
from varsearch.search.setup.prepare import Plan
from varsearch.target import find_device

WORTH_PROFILING = 100
"""Evaluations from which on a search is long enough to pay for a profile that no one has made yet."""


def guided(
    plan: Plan,
    storage: str | Path,
    evaluations: float,
    use_profile: bool = True,
    n_warm: int = 0,
    on_refusal: Callable[[str], None] = lambda reason: None,
    on_start: Callable[[], None] = lambda: None,
    on_step: OnStep = lambda step: None,
) -> tuple[SideInformation | None, dict[str, Policy]]:
    """The guide of a run's proposals, None where quality is not evaluated, and its starts by origin.

    Args:
        plan: the run.
        storage: database that knows the profile, or gets it.
        evaluations: of the run that are still to be proposed: `WORTH_PROFILING` of them pay for a profile. One that is
            stored is used anyway.
        use_profile: whether there may be one.
        n_warm: policies from mild to strong that the search takes from its profile to start from, which is then made.
            Proposals know the profile anyway, so by default there are none, see docs/log.md.
        on_refusal: told why the model cannot be profiled.
        on_start: called before a profile is made or completed, which takes minutes.
        on_step: told after every measurement.

    Raises:
        UsageError: there are to be warm starts, but no profile of quality.
    """
    if plan.settings.quality is None:
        if n_warm:
            raise UsageError("warm starts come from a profile, which says nothing where quality is not evaluated")
        return None, plan.starts.by_origin
    model, speed = plan.worker.model, plan.settings.speed
    found = None
    if use_profile and (refusal := profile_refusal(model)):
        if n_warm:
            raise UsageError(f"warm starts come from a profile, which this model cannot have: {refusal}")
        on_refusal(refusal)
    elif use_profile:
        found = _profile(plan, storage, bool(n_warm) or evaluations >= WORTH_PROFILING, on_start, on_step)
    guide = SideInformation(plan.space.spec, tuple(zoo.siblings(model)), found, _make_costs(model, speed))
    starts = plan.starts.by_origin
    return guide, starts_with(starts, warm_starts(found, n_warm) if found and n_warm else ())


def _make_costs(model: str, speed: SpeedProtocol) -> MakeCostFunction | None:
    """Where time is measured, memory is still known beforehand, but for CUDA's, which its allocator is asked for."""
    if speed.origin is Origin.PREDICTED:
        return partial(exact_costs, model, speed)
    return partial(exact_memory, model, speed.target) if find_device(speed.target.device).kind == "cpu" else None


def starts_with(starts: Mapping[str, Policy], warm: Sequence[WarmStart]) -> dict[str, Policy]:
    """Dense, the warm starts from mild to strong, and then the others, by origin.

    Both, because a profile is wrong about some whole policies and a hand is right about some, see docs/log.md.
    """
    return {DENSE: starts[DENSE], **{f"{WARM}{i}": start.policy for i, start in enumerate(warm)}} | dict(starts)


def _profile(
    plan: Plan, storage: str | Path, make: bool, on_start: Callable[[], None], on_step: OnStep
) -> Profile | None:
    model, target = plan.worker.model, plan.settings.target
    found = known_profile(model, target, storage)
    if found is None and make:
        on_start()
        return profiled(model, target, storage, on_step=on_step)
    return found
