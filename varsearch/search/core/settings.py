"""What a run is about. Two trials are comparable exactly when their runs have equal settings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from varsearch.errors import StoreError, UsageError
from varsearch.measurement import METRICS, Origin, QualityProtocol, SpeedProtocol
from varsearch.policy import describe
from varsearch.target import Frozen, Target

UNBOUNDED_BELOW = {"delta_fid", "kid"}
"""Metrics that are minimized and can be negative; all others count something."""

NAMES = ("fid", "latency", "memory")
"""What users call the default objectives."""

MAX_OBJECTIVES = 4
"""The hypervolume is exact and its boxes are few enough for so many; of more, nearly every policy is on the front."""


def default_objectives(origin: Origin) -> tuple[str, str, str]:
    """ΔFID, latency and peak memory.

    Where latency is measured it counts as speed-up: dense runs in the same rounds, and a machine's load and clock,
    which drift over the hours of a run, slow both alike.
    """
    return "delta_fid", "speedup" if origin is Origin.MEASURED else "latency_ms", "peak_bytes"


def named_objectives(given: tuple[str, ...] | None, origin: Origin) -> tuple[str, ...]:
    """Metrics of what a user asks for: `NAMES`, whose order makes no difference, or metrics; None is all of `NAMES`.

    Beside metrics "fid" is the metric of that name; it orders policies as ΔFID does.
    """
    metric = dict(zip(NAMES, default_objectives(origin), strict=True))
    given = NAMES if given is None else given
    if set(given) <= set(NAMES):
        return tuple(metric[name] for name in sorted(given, key=NAMES.index))
    unknown = next((name for name in given if name not in METRICS and name not in NAMES), None)
    if unknown is not None:
        known = f"{', '.join(NAMES)}, or metrics: {', '.join(METRICS)}"
        raise UsageError(f"--objectives: unknown metric {unknown!r}: known are {known}")
    return tuple(name if name in METRICS else metric[name] for name in given)


class RunSettings(Frozen):
    """Model, target, protocols, objectives, bounds, space and the sampler's seed. Budget, time and workers are no part.

    Args:
        model: name or folder of the model, `fingerprint` its `ModelSpec.identity`.
        quality: how quality is evaluated; None where it is not, because no objective and no bound asks for it.
        speed: how latency and memory are evaluated, and on what target.
        objectives: one to four metrics.
        bounds: metric to the worst value that is feasible.
        seed: of the sampler.
        space: digest of the search space.

    Raises:
        UsageError: an unknown metric, no objective, a metric of quality where it is not evaluated, or a bound that no
            policy can satisfy.
    """

    model: str
    fingerprint: str
    quality: QualityProtocol | None = None
    speed: SpeedProtocol
    objectives: tuple[str, ...]
    bounds: dict[str, Annotated[float, Field(allow_inf_nan=True)]] = Field(default={})
    seed: int = Field(default=0, ge=0)
    space: str = ""

    @model_validator(mode="after")
    def _metrics_make_sense(self) -> Self:
        unknown = [name for name in (*self.objectives, *self.bounds) if name not in METRICS]
        if unknown:
            raise UsageError(f"unknown metric {unknown[0]!r}: known metrics are {', '.join(METRICS)}")
        if not 1 <= len(set(self.objectives)) == len(self.objectives) <= MAX_OBJECTIVES:
            raise UsageError(f"objectives must be one to four different metrics, got {', '.join(self.objectives)}")
        blind = [name for name in (*self.objectives, *self.bounds) if METRICS[name].kind == "quality"]
        if blind and self.quality is None:
            raise UsageError(f"{blind[0]} is a metric of quality, which this run does not evaluate")
        for name, limit in self.bounds.items():
            _check_bound(name, limit)
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        """Settings from the JSON that a store kept."""
        try:
            return cls.model_validate_json(text)
        except (ValidationError, UsageError) as error:
            told = describe(error) if isinstance(error, ValidationError) else error
            raise StoreError(f"the run's settings are damaged or of a newer version: {told}") from None

    @property
    def target(self) -> Target:
        """What latency and memory refer to."""
        return self.speed.target

    @property
    def origin(self) -> Origin:
        """Whether latency and memory are measured or predicted."""
        return self.speed.origin

    @property
    def quality_digest(self) -> str:
        """Digest of the quality protocol; empty where quality is not evaluated, which no evidence has."""
        return self.quality.digest if self.quality else ""

    @property
    def default_name(self) -> str:
        """Model, device and a digest of everything else: the same command continues the same run."""
        # What follows the name of a published model says where its weights are.
        return f"{Path(re.split('[@#]', self.model)[0]).name}-{self.target.device}-{self.digest[:8]}"

    def missing(self, values: Mapping[str, float]) -> str:
        """Why these metrics cannot be judged, in one line; empty if they can."""
        for name in (*self.objectives, *self.bounds):
            if name not in values:
                return f"the evaluation gave no {name}"
            if not math.isfinite(values[name]):
                return f"the evaluation gave {name} = {values[name]}"
        return ""

    def require(self, values: Mapping[str, float], number: int) -> None:
        """Raises `StoreError` if a complete trial lacks a metric, which no trial does that was stored by us."""
        if missing := self.missing(values):
            raise StoreError(f"trial {number} is stored as complete, but {missing}: its evidence is damaged")

    def objective_values(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """What is optimized: the objectives, a ΔFID below 0 counting as 0.

        A cheaper policy is not a better model. Where it seems so it is noise, which would fill the front with policies
        that save nothing.
        """
        return tuple(max(values[name], 0.0) if name == "delta_fid" else values[name] for name in self.objectives)

    def losses(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """The objectives as numbers to minimize."""
        signs = (_sign(name) for name in self.objectives)
        return tuple(sign * value for sign, value in zip(signs, self.objective_values(values), strict=True))

    def violations(self, values: Mapping[str, float]) -> list[float]:
        """By how much each bound is exceeded, as a share of the bound; feasible where all are zero or less.

        Shares, because samplers add the violations of all bounds up, and bytes must not drown out milliseconds.
        """
        return [
            _sign(name) * (values[name] - limit) / (abs(limit) or 1.0) for name, limit in sorted(self.bounds.items())
        ]

    def is_feasible(self, values: Mapping[str, float]) -> bool:
        """Whether no bound is exceeded."""
        return all(violation <= 0 for violation in self.violations(values))

    def difference(self, other: RunSettings) -> str:
        """The settings in which `other` differs, such as "seed was 0, is 1"; empty if none."""
        old, new = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        names = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
        return "; ".join(f"{name} was {old.get(name)}, is {new.get(name)}" for name in sorted(names))


def _sign(metric: str) -> int:
    return 1 if METRICS[metric].direction == "minimize" else -1


def _check_bound(name: str, limit: float) -> None:
    metric = METRICS[name]
    if not math.isfinite(limit):
        raise UsageError(f"the bound on {name} must be a finite number, got {limit}")
    if metric.direction == "minimize" and name not in UNBOUNDED_BELOW and limit <= 0:
        raise UsageError(f"no policy has {name} of {limit} or less: give a bound above 0")
    if metric.direction == "maximize" and not metric.unit and limit > 1:
        raise UsageError(f"no policy has {name} of {limit} or more: it is a share, give a bound up to 1")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
