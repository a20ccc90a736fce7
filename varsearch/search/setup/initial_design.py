"""The initial design of a search: the policies that it tries before it proposes any.

In this order: dense, which all others are compared with; policies whose quality other runs know,
which need no images; warm starts of a sensitivity profile, from mild to strong; published systems;
hand-made policies. The last three are tried all, because a profile is wrong about some whole
policies and hand-made ones are right about some (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from varsearch.calibration import Calibration
from varsearch.policy import Policy
from varsearch.search.core.source import DENSE, Source, SourceKind
from varsearch.search.sensitivity.warm_start import WarmStart
from varsearch.space.presets import presets, seeds
from varsearch.space.presets.assumed import assumed
from varsearch.target import ModelSpec

NONE_KNOWN: Mapping[str, Policy] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Starts:
    """Published systems and hand-made policies that fit a model.

    Attributes:
        presets: published systems by name.
        seeds: hand-made policies by name, "dense" first.
        missing: for every other published system, the reason of its absence.
        assumed: published systems with the papers' constants, as the model was not calibrated.
    """

    presets: dict[str, Policy]
    seeds: dict[str, Policy]
    missing: dict[str, str]
    assumed: tuple[str, ...] = ()

    @property
    def by_name(self) -> dict[str, Policy]:
        """All of them: dense, published systems, hand-made policies."""
        return {"dense": self.seeds["dense"], **self.presets, **self.seeds}

    @property
    def by_origin(self) -> dict[str, Policy]:
        """All of them in the same order, by the origin that their trials show."""
        origins: dict[str, Policy] = {}
        for name, policy in self.by_name.items():
            kind = SourceKind.PRESET if name in self.presets else SourceKind.SEED
            origins[str(Source(kind, name))] = policy
        return origins


def starts_for(
    spec: ModelSpec,
    calibration: Calibration | None,
    siblings: Sequence[ModelSpec],
    *,
    assume: bool = False,
) -> Starts:
    """Published systems and hand-made policies that fit the model.

    Args:
        spec: the model.
        calibration: of the model; None for a model without trained weights. The systems that need
            one are then missing.
        siblings: smaller models with the same tokenizer.
        assume: whether the papers' constants stand in for a calibration.
    """
    found, missing = presets(spec, calibration, siblings)
    if calibration is None and assume and spec.family != "mvar":
        unknown = set(missing)
        found, missing = presets(spec, assumed(spec), siblings)
        return Starts(found, seeds(spec), missing, tuple(name for name in found if name in unknown))
    return Starts(found, seeds(spec), missing)


def initial_design(
    starts: Mapping[str, Policy],
    known: Mapping[str, Policy] = NONE_KNOWN,
    warm: Sequence[WarmStart] = (),
) -> dict[str, Policy]:
    """Policies by origin, in the order of their trials.

    Args:
        starts: dense, published systems and hand-made policies, by origin.
        known: policies whose quality is known, by origin. One that is also a start keeps the
            start's origin.
        warm: policies of a profile, from mild to strong.
    """
    dense = {DENSE: starts[DENSE]}
    warm_ones = {str(Source(SourceKind.WARM, str(i))): s.policy for i, s in enumerate(warm)}
    own = dense | warm_ones | dict(starts)
    origins = {policy.digest: origin for origin, policy in reversed(own.items())}
    first = {origins.get(policy.digest, origin): policy for origin, policy in known.items()}
    return dense | first | own
