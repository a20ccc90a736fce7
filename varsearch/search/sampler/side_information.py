"""What proposals may know besides the trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from varsearch.policy import Policy
from varsearch.sensitivity_profile import Profile
from varsearch.target import ModelSpec

Costs = Callable[[Policy], Mapping[str, float]]
"""Gives metrics of speed of a policy without evaluating it; `VarsearchError` for one that cannot run."""

MakeCosts = Callable[[], Costs]


@dataclass(frozen=True, slots=True)
class Guide:
    """Travels to other processes, so it must be picklable.

    Args:
        spec: shape of the model.
        siblings: its possible refiners.
        profile: what its settings lose and save; without it that is guessed from shapes.
        make_costs: makes what gives in a moment those metrics of speed that an evaluation would give exactly like it.
    """

    spec: ModelSpec
    siblings: tuple[ModelSpec, ...] = ()
    profile: Profile | None = None
    make_costs: MakeCosts | None = None
