"""What one-at-a-time measurements of a model's units found: what each setting costs in quality, and what it saves.

Torch-free data. A setting is known by its name (see `space.settings`), several at once by `together`. Quality does not
depend on the target, so it is kept apart, and another target draws no images.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Self

from pydantic import Field

from varsearch.measurement import SpeedProtocol
from varsearch.target import DType, Frozen, ModelSpec, Noise

JOIN = " + "

DENSE = "dense"
"""The name of no setting at all."""


def together(names: Iterable[str]) -> str:
    """The name of several settings at once."""
    return JOIN.join(names) or DENSE


class SensitivityProtocol(Frozen):
    """What sensitivities depend on besides the model.

    Args:
        extractor: identity of the features that images are compared in.
        images: drawn per setting, on the same noise as those of dense; as many held-out ones are read.
        seed: of the noise, and of the choice of pairs and whole policies.
        settings: digest of what is measured.
    """

    extractor: str
    images: int = Field(ge=4)
    seed: int = Field(ge=0)
    guidance: float
    top_k: int
    top_p: float
    settings: str
    noise: Noise = "mt19937"
    dtype: DType = "float32"
    version: int = 1


class Estimate(Frozen):
    """A number and its standard error."""

    value: float
    error: float = Field(ge=0)


class Effect(Frozen):
    """How much worse than dense a policy is, on the same noise and the same held-out tokens.

    Args:
        shift: squared length of the mean features' change, freed of the part that noise has in it (it may be below 0):
            the means' part of the Fréchet distance to dense. A different image that is as good does not count.
        distance: squared change of each image's features, mean over images and features: `feature_distance`. Sees the
            smallest changes, good or bad.
        nll: change of the teacher-forced negative log-likelihood, nats per token; None where it is not defined: a
            skipped scale has none, and guidance has no part in it.
    """

    shift: Estimate
    distance: Estimate
    nll: Estimate | None


class Sensitivity(Frozen):
    """What settings do to the quality of one model.

    Args:
        fingerprint: of the model's weights.
        effects: by name: of every setting alone, of pairs, of whole policies.
        seconds: what measuring took.
    """

    part: ClassVar[str] = "quality"

    fingerprint: str
    protocol: SensitivityProtocol
    effects: dict[str, Effect] = Field(default={})
    seconds: float = 0.0

    def merged(self, other: Self) -> Self:
        """All effects of both, by this one where both have one."""
        changed = {"effects": {**other.effects, **self.effects}, "seconds": max(self.seconds, other.seconds)}
        return self.model_copy(update=changed)


class Cost(Frozen):
    """What one batch takes; a difference of two has the same fields."""

    latency_ms: float
    peak_bytes: float
    weight_bytes: float
    kv_bytes: float
    flops: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in Cost.model_fields})

    def __sub__(self, other: Cost) -> Cost:
        return Cost(**{name: getattr(self, name) - getattr(other, name) for name in Cost.model_fields})


class CostProtocol(Frozen):
    """What costs depend on besides the model.

    Args:
        speed: how whole policies are timed on the target: measured there, or predicted.
        settings: digest of what is costed.
    """

    speed: SpeedProtocol
    settings: str
    version: int = 1


class Costs(Frozen):
    """What settings save on one target.

    Args:
        fingerprint: of the model's weights.
        parts: what a batch takes with settings that go together, by the cost model; `DENSE` among them.
        policies: what a batch takes with whole policies, timed as the protocol says; `DENSE` among them.
        seconds: what it took.
    """

    part: ClassVar[str] = "cost"

    fingerprint: str
    protocol: CostProtocol
    parts: dict[str, Cost] = Field(default={})
    policies: dict[str, Cost] = Field(default={})
    seconds: float = 0.0

    def merged(self, other: Self) -> Self:
        """All costs of both, by this one where both have one."""
        changed = {
            "parts": {**other.parts, **self.parts},
            "policies": {**other.policies, **self.policies},
            "seconds": max(self.seconds, other.seconds),
        }
        return self.model_copy(update=changed)


class Profile(Frozen):
    """All that is known of a model's settings on one target.

    Args:
        spec: shape of the model.
        siblings: its possible refiners.
    """

    spec: ModelSpec
    siblings: tuple[ModelSpec, ...]
    sensitivity: Sensitivity
    costs: Costs
