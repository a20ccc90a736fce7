"""Gathers what proposals may know besides the trials: a sensitivity profile and exact costs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from varsearch.errors import UsageError
from varsearch.evaluators.costs import exact_costs, exact_memory
from varsearch.measurement import Origin, SpeedProtocol
from varsearch.models import zoo
from varsearch.search.sampler.side_information import Guide, MakeCosts
from varsearch.search.sensitivity.profile import known_profile, profile_refusal, profiled
from varsearch.search.sensitivity.warm_start import WarmStart, warm_starts
from varsearch.search.setup.listener import Listener
from varsearch.search.setup.prepare import Problem
from varsearch.sensitivity_profile import Profile
from varsearch.target import find_device

WORTH_PROFILING = 100
"""A search of so many evaluations is long enough to pay for a new profile."""


def gather(
    problem: Problem,
    storage: str | Path,
    evaluations: float,
    *,
    profile: bool = True,
    n_warm: int = 0,
    listener: Listener | None = None,
) -> tuple[Guide | None, list[WarmStart]]:
    """Side information of a search, and its warm starts.

    Proposals know the profile anyway, so a search has no warm starts by default (docs/log.md).

    Args:
        problem: what is searched.
        storage: database that knows the profile, or gets it.
        evaluations: evaluations that are still to be proposed. `WORTH_PROFILING` of them pay for a
            profile; a stored one is used anyway.
        profile: whether a profile may be used.
        n_warm: number of policies, from mild to strong, that the search starts from. They need a
            profile, which is made if there is none.
        listener: is told about the profile.

    Returns:
        None in place of side information where quality is not evaluated.

    Raises:
        UsageError: there are to be warm starts, but there can be no profile.
    """
    listener = listener or Listener()
    if problem.settings.quality is None:
        if n_warm:
            raise UsageError("warm starts come from a profile, which says nothing where quality is not evaluated")
        return None, []
    model, speed = problem.worker.model, problem.settings.speed
    known = None
    if profile and (refusal := profile_refusal(model)):
        if n_warm:
            raise UsageError(f"warm starts come from a profile, which this model cannot have: {refusal}")
        listener.on_no_profile(refusal)
    elif profile:
        make = bool(n_warm) or evaluations >= WORTH_PROFILING
        known = _profile(problem, storage, listener, make=make)
    side_information = Guide(problem.space.spec, tuple(zoo.siblings(model)), known, _make_costs(model, speed))
    return side_information, warm_starts(known, n_warm) if known and n_warm else []


def _make_costs(model: str, speed: SpeedProtocol) -> MakeCosts | None:
    """Costs that are known before an evaluation: all predicted ones, and memory on a CPU.

    CUDA's memory is what its allocator says, so it is measured.
    """
    if speed.origin is Origin.PREDICTED:
        return partial(exact_costs, model, speed)
    on_cpu = find_device(speed.target.device).kind == "cpu"
    return partial(exact_memory, model, speed.target) if on_cpu else None


def _profile(problem: Problem, storage: str | Path, listener: Listener, *, make: bool) -> Profile | None:
    model, target = problem.worker.model, problem.settings.target
    known = known_profile(model, target, storage)
    if known is None and make:
        listener.on_profile()
        return profiled(model, target, storage, on_step=listener.on_profile_step)
    return known
