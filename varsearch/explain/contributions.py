"""What each change of a policy saves and costs: the policy beside itself without that change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from varsearch.accel import apply
from varsearch.errors import PolicyError
from varsearch.evaluators.cost_model import CostModel
from varsearch.evaluators.draws import BATCH
from varsearch.evaluators.per_image import likelihoods, mean
from varsearch.evaluators.quality import QualityEvaluator
from varsearch.measurement import Measurement
from varsearch.policy import Policy
from varsearch.space.settings import KINDS, Chosen, settings_of, without

SAVINGS = ("latency_ms", "peak_bytes", "kv_bytes", "weight_bytes", "flops")
"""Metrics of cost, of which a change may save some."""

LOSSES = ("feature_distance", "nll")
"""Metrics of quality that compare image by image, so that few images tell two close policies apart."""


@dataclass(frozen=True, slots=True)
class Change:
    """The settings of one technique at one place.

    Attributes:
        unit: the place, such as "layer 2 qkv", "layer 0 head 3", "scale 4 layer 1"; unique within a
            policy together with `kind`.
        kind: the technique.
        setting: the value that holds there.
        settings: taken back together.
        without: the policy with these as in dense; None where the rest cannot stand without them.
    """

    unit: str
    kind: str
    setting: str
    settings: Chosen
    without: Policy | None


def changes_of(policy: Policy) -> list[Change]:
    """Every place where `policy` differs from dense, technique by technique; none for dense."""
    order = list(KINDS)
    found: dict[tuple[str, str], Chosen] = {}
    for s in sorted(settings_of(policy), key=lambda s: order.index(s.kind)):
        if not KINDS[s.kind].spelling:
            place, technique, _ = s.describe()
            found[place, technique] = (*found.get((place, technique), ()), s)
    return [_change(policy, place, name, some) for (place, name), some in found.items()]


def _change(policy: Policy, place: str, technique: str, some: Chosen) -> Change:
    told = " and ".join(s.describe().value for s in some)
    try:
        less: Policy | None = without(policy, some)
    except PolicyError:
        less = None
    return Change(place, technique, told, some, less)


@dataclass(frozen=True, slots=True)
class UnitCost:
    """What one change does to costs and quality.

    Attributes:
        saved: metric to how much less it is with the change; negative where the change costs some.
        lost: metric to how much higher it is with the change, over images and with its interval.
    """

    saved: Mapping[str, float] = field(default_factory=dict)
    lost: Mapping[str, Measurement] = field(default_factory=dict)


class UnitCosts(Protocol):
    """Knows what changes save or cost, from whatever was measured: one by one from dense, or taken back one by one."""

    def of(self, change: Change) -> UnitCost | None:
        """What is known of a change; None if nothing is."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """A change with all that is known of it."""

    change: Change
    cost: UnitCost


def explain_changes(
    policy: Policy, sources: Sequence[UnitCosts], on_change: Callable[[int, int], None] = lambda done, all: None
) -> list[Row]:
    """Every change of `policy` with what the sources know of it, a later source before an earlier one.

    Args:
        policy: what is explained.
        sources: where numbers come from; without a number a metric is missing from the row.
        on_change: called after each change with how many are done, and of how many.

    Raises:
        EvaluationError: a source gave no usable number.
    """
    found = changes_of(policy)
    rows = []
    for done, change in enumerate(found, start=1):
        known = [cost for source in sources if (cost := source.of(change))]
        saved = {metric: value for cost in known for metric, value in cost.saved.items()}
        lost = {metric: value for cost in known for metric, value in cost.lost.items()}
        rows.append(Row(change, UnitCost(saved, lost)))
        on_change(done, len(found))
    return rows


class PredictedSavings:
    """Savings by the cost model: the policy without the change minus the policy."""

    def __init__(self, policy: Policy, model: CostModel) -> None:
        self.policy, self.model = policy, model

    @cached_property
    def with_all(self) -> dict[str, float]:
        """Costs of the whole policy."""
        return self.model.evaluate(self.policy).values

    def of(self, change: Change) -> UnitCost | None:
        """What the change saves, where it can be taken back alone."""
        return None if change.without is None else UnitCost(saved=self.against(change.without))

    def against(self, other: Policy) -> dict[str, float]:
        """What the policy saves beside `other`."""
        values = self.model.evaluate(other).values
        return {metric: values[metric] - self.with_all[metric] for metric in SAVINGS}


@dataclass(frozen=True, slots=True)
class PerImage:
    """A policy's distance to dense and likelihood, one number per image; likelihood is missing with skipped scales."""

    feature_distance_N: Tensor
    nll_N: Tensor | None


class MeasuredLosses:
    """Losses by drawing images and reading held-out ones with the policy and without the change.

    The same noise and the same held-out images in both, so the error is that of the mean of differences per image.
    A feature's distance to dense grows quickly at first and then saturates, so in a strong policy each change adds less
    than it would alone, or even takes some away.
    """

    def __init__(self, policy: Policy, evaluator: QualityEvaluator) -> None:
        self.policy, self.evaluator = policy, evaluator

    @cached_property
    def with_all(self) -> PerImage:
        """Of the whole policy."""
        return self._measure(self.policy)

    def of(self, change: Change) -> UnitCost | None:
        """What the change costs, where it can be taken back alone.

        Raises:
            EvaluationError: images or likelihoods are not finite.
        """
        return None if change.without is None else UnitCost(lost=self.against(change.without))

    def against(self, other: Policy) -> dict[str, Measurement]:
        """What the policy loses beside `other`."""
        own, beside = self.with_all, self._measure(other)
        lost = [mean("feature_distance", own.feature_distance_N - beside.feature_distance_N)]
        if own.nll_N is not None and beside.nll_N is not None:
            lost.append(mean("nll", own.nll_N - beside.nll_N))
        return {m.metric: m for m in lost}

    @cached_property
    def _dense_ND(self) -> Tensor:
        return self._features(self.evaluator.dense_policy)

    def _features(self, policy: Policy) -> Tensor:
        images = self.evaluator.sample(policy, self.evaluator.protocol.n_images).to(self.evaluator.device)
        features = [self.evaluator.extractor.features(part) for part in images.split(BATCH)]
        return torch.cat(features).double().cpu()

    def _measure(self, policy: Policy) -> PerImage:
        distance_N = (self._features(policy) - self._dense_ND).square().mean(1)
        return PerImage(distance_N, self._likelihood(policy))

    def _likelihood(self, policy: Policy) -> Tensor | None:
        held_out = self.evaluator.held_out
        if held_out is None or not all(scale.run for path in policy.paths() for scale in path.scales):
            return None
        tokens, labels_N = held_out
        with apply(self.evaluator.model, policy) as applied:
            return likelihoods(applied, tokens, labels_N, self.evaluator.readings.of(policy))
