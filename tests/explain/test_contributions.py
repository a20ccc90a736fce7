"""What changes save and cost, against the evaluators' own numbers."""

from __future__ import annotations

import pytest

from varsearch.evaluators.cost_model import CostModel, predicted_protocol
from varsearch.evaluators.quality import for_zoo
from varsearch.explain.contributions import (
    SAVINGS,
    Change,
    MeasuredLosses,
    PredictedSavings,
    UnitCost,
    changes_of,
    explain_changes,
)
from varsearch.measurement import Measurement
from varsearch.models.image_model import ImageModel
from varsearch.policy import KVCompression, LayerPolicy, Policy, Quantization, ScalePolicy, Weights
from varsearch.target import Target

TARGET = Target(device="4090", dtype="float16", batch_size=8)


def test_savings_are_what_the_cost_model_says_of_both(tiny: ImageModel) -> None:
    first = LayerPolicy(weights=Weights(fc1=Quantization(bits=4)), kv=KVCompression(keep=(0.0, 1.0, 1.0, 1.0)))
    dense = Policy.dense(3, 5)
    policy = Policy(layers=(first, *dense.layers[1:]), scales=(*dense.scales[:4], ScalePolicy(guidance="off")))
    model = CostModel(tiny, predicted_protocol(TARGET))
    told: list[tuple[int, int]] = []
    rows = explain_changes(policy, [PredictedSavings(policy, model)], lambda done, all: told.append((done, all)))
    assert [row.change.kind for row in rows] == ["weights", "KV budget", "guidance"]
    assert told == [(1, 3), (2, 3), (3, 3)]
    own = model.evaluate(policy).values
    for row in rows:
        assert row.change.without is not None and not row.cost.lost
        beside = model.evaluate(row.change.without).values
        assert row.cost.saved == {metric: beside[metric] - own[metric] for metric in SAVINGS}
    weights, kv, guidance = (row.cost.saved for row in rows)
    assert weights["weight_bytes"] > 0 == weights["kv_bytes"] == weights["flops"]
    assert kv["kv_bytes"] > 0 and guidance["flops"] > 0.1 * own["flops"]


def test_nothing_is_said_of_what_cannot_be_taken_back_alone(tiny: ImageModel) -> None:
    change = Change("scale 3", "guidance", "off", (), None)
    dense = Policy.dense(3, 5)
    assert PredictedSavings(dense, CostModel(tiny, predicted_protocol(TARGET))).of(change) is None


def test_later_sources_say_more() -> None:
    first = LayerPolicy(weights=Weights(qkv=Quantization(bits=8)))
    policy = Policy(layers=(first,), scales=Policy.dense(1, 2).scales)
    nll = Measurement(metric="nll", value=0.1)

    class Known:
        def __init__(self, cost: UnitCost | None) -> None:
            self.cost = cost

        def of(self, change: Change) -> UnitCost | None:
            assert change in changes_of(policy)
            return self.cost

    one = Known(UnitCost(saved={"flops": 1.0, "latency_ms": 2.0}))
    two = Known(UnitCost(saved={"flops": 3.0}, lost={"nll": nll}))
    (row,) = explain_changes(policy, [one, two, Known(None)])
    assert row.cost == UnitCost(saved={"flops": 3.0, "latency_ms": 2.0}, lost={"nll": nll})


@pytest.fixture(scope="module")
def losses() -> MeasuredLosses:
    dense = Policy.dense(6, 6)
    first = LayerPolicy(weights=Weights(fc1=Quantization(bits=3)))
    policy = Policy(layers=(first, *dense.layers[1:]), scales=(*dense.scales[:5], ScalePolicy(guidance="off")))
    return MeasuredLosses(policy, for_zoo("mnist", 16, nll_images=16))


def test_the_whole_policy_loses_what_the_quality_evaluator_says(losses: MeasuredLosses) -> None:
    evaluator = losses.evaluator
    found = losses.against(evaluator.dense_policy)
    own, dense = evaluator.evaluate(losses.policy), evaluator.evaluate(evaluator.dense_policy)
    expected = {m.metric: m for m in own.measurements}
    assert found["feature_distance"].value == pytest.approx(expected["feature_distance"].value, rel=1e-6)
    assert found["feature_distance"].low == pytest.approx(expected["feature_distance"].low, rel=1e-6)
    assert found["nll"].value == pytest.approx(own.values["nll"] - dense.values["nll"], rel=1e-6)
    spread = expected["nll"].high - expected["nll"].low
    assert found["nll"].high - found["nll"].low < spread / 4, "paired differences have a smaller error"


def test_guidance_has_no_part_in_the_likelihood_and_weights_do(losses: MeasuredLosses) -> None:
    weights, guidance = (losses.of(change) for change in changes_of(losses.policy))
    assert weights is not None and guidance is not None
    assert guidance.lost["nll"].value == 0 != weights.lost["nll"].value
    assert weights.lost["feature_distance"].n == 16


def test_a_skipped_scale_has_no_likelihood(losses: MeasuredLosses) -> None:
    skipping = losses.policy.model_copy(update={"scales": (*losses.policy.scales[:5], ScalePolicy(run=False))})
    assert list(losses.against(skipping)) == ["feature_distance"]


def test_dense_costs_nothing_beside_itself(losses: MeasuredLosses) -> None:
    dense = losses.evaluator.dense_policy
    found = MeasuredLosses(dense, losses.evaluator)
    assert {metric: m.value for metric, m in found.against(dense).items()} == {"feature_distance": 0, "nll": 0}
    assert found.with_all.feature_distance_N.count_nonzero() == 0
