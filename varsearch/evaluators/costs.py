"""What settings save on a target, and what whole policies really take there."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property, lru_cache

from varsearch.evaluators.cost_model import CostModel, predicted_protocol
from varsearch.evaluators.speed import SpeedEvaluator
from varsearch.evaluators.workload import zoo_skeleton
from varsearch.measurement import TIMES, Evidence, Origin, SpeedProtocol
from varsearch.models import zoo
from varsearch.policy import Policy
from varsearch.sensitivity_profile import Cost
from varsearch.target import Target

REMEMBERED = 4096
"""Predictions that are kept, some kilobytes each."""


class CostEvaluator:
    """Costs of policies of one zoo model on one target.

    Where the target is measured only whole policies are: a single setting of a small model changes its latency by less
    than measuring it for seconds could tell.

    Args:
        model: name or folder.
        protocol: how whole policies are timed.
        dense_ms: measured latency of dense, where it is known already.
    """

    def __init__(self, model: str, protocol: SpeedProtocol, dense_ms: float | None = None) -> None:
        self.model, self.protocol = model, protocol
        self._known_dense_ms = dense_ms
        self._predict = predicting(model, predicted_protocol(protocol.target))

    def predicted(self, policy: Policy) -> Cost:
        """By the cost model, whatever the protocol says.

        Raises:
            PolicyError: the policy does not fit the model.
            EvaluationError: the batch would not fit into the device's memory.
        """
        return _cost(self._predict(policy))

    def end_to_end(self, policy: Policy) -> Cost:
        """As the protocol says.

        Measured latency is that of dense, measured once, over the speed-up: the two are timed in turn, so the clock of
        the machine may drift.
        """
        if self.protocol.origin is not Origin.MEASURED:
            return self.predicted(policy)
        dense_ms, found = self._dense_ms, self._measuring.evaluate(policy)
        return _cost(found).model_copy(update={"latency_ms": dense_ms / found.values["speedup"]})

    @cached_property
    def _measuring(self) -> SpeedEvaluator:
        return SpeedEvaluator(zoo.load(self.model), self.protocol)

    @cached_property
    def _dense_ms(self) -> float:
        if self._known_dense_ms is not None:
            return self._known_dense_ms
        spec = self._measuring.model.spec
        return self._measuring.evaluate(Policy.dense(spec.n_layers, len(spec.scales))).values["latency_ms"]


def _cost(evidence: Evidence) -> Cost:
    return Cost(**{name: evidence.values[name] for name in Cost.model_fields})


@cache
def predicting(model: str, protocol: SpeedProtocol) -> Callable[[Policy], Evidence]:
    """What predicts speed and memory of a zoo model's policies; see `CostModel.evaluate`.

    There is one in each process, which remembers: a proposal is traced before it is chosen, and evaluated afterwards.
    """
    return lru_cache(REMEMBERED)(CostModel(zoo_skeleton(model), protocol).evaluate)


def exact_costs(model: str, protocol: SpeedProtocol) -> Callable[[Policy], dict[str, float]]:
    """What gives the metrics of speed that the cost model predicts for a zoo model."""
    predict = predicting(model, protocol)
    return lambda policy: predict(policy).values


def exact_memory(model: str, target: Target) -> Callable[[Policy], dict[str, float]]:
    """What gives the bytes and operations of a zoo model's policies, as a measurement on a CPU counts them too.

    Not those of policies that decide for each image.
    """
    predict = predicting(model, predicted_protocol(target))
    return lambda policy: {metric: x for metric, x in predict(policy).values.items() if metric not in TIMES}
