"""Bounds: what is understood, and that exactly the impossible ones are refused."""

from __future__ import annotations

import re

import pytest

from varsearch.errors import EvaluationError, UsageError
from varsearch.evaluators.cost_model import predicted_protocol
from varsearch.measurement import Evidence, Measurement, Origin, SpeedProtocol
from varsearch.models import zoo
from varsearch.policy import Policy
from varsearch.search.core.bounds import ACCEPTED, Bounded, parse_bound, parse_bounds
from varsearch.search.setup import bounds as feasible
from varsearch.search.setup.bounds import PredictedCosts, resolve
from varsearch.space import SearchSpace
from varsearch.target import default_target, find_device

SPACE = SearchSpace(zoo.manifest("mnist").spec())
SPEED = predicted_protocol(default_target(find_device("4090")))


class FakeCosts:
    """Skipping a scale saves 1 ms and 100 B, unguided scales 2 ms; weights in few bits save 50 B each and cost time."""

    def __init__(self, *_: object) -> None: ...

    def evaluate(self, policy: Policy) -> Evidence:
        skipped = sum(not scale.run for scale in policy.scales)
        unguided = any(scale.guidance == "off" for scale in policy.scales)
        low = sum(layer.weights.qkv is not None for layer in policy.layers)
        values = {
            "latency_ms": 10.0 - skipped - 2 * unguided + 0.1 * low,
            "peak_bytes": 1000.0 - 100 * skipped - 50 * low,
        }
        return Evidence(
            kind="speed", policy="", model="", protocol="", seconds=0.0,
            measurements=tuple(Measurement(metric=name, value=value) for name, value in values.items()),
        )  # fmt: skip


LEAST_MS, LEAST_BYTES = 10.0 - 5 - 2, 1000.0 - 500 - 300


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasible, "CostModel", FakeCosts)


def resolved(speed: SpeedProtocol = SPEED, **given: str | None) -> dict[str, float]:
    asked = parse_bounds(*(given.get(name) for name in ("latency", "memory", "fid")))
    return resolve(asked, SPACE, "mnist", speed)


@pytest.mark.parametrize(
    ("given", "bounds"),
    [
        ({}, {}),
        ({"latency": "12ms"}, {"latency_ms": 12.0}),
        ({"latency": "12"}, {"latency_ms": 12.0}),
        ({"latency": ".02 s"}, {"latency_ms": 20.0}),
        ({"latency": "0.5x"}, {"speedup": 2.0}),
        ({"memory": "8GB"}, {"peak_bytes": 8e9}),
        ({"memory": " 0.5kB "}, {"peak_bytes": 500.0}),
        ({"memory": "0.5x"}, {"peak_bytes": 500.0}),
        ({"fid": "1.9"}, {"fid": 1.9}),
        ({"fid": "+0.5"}, {"delta_fid": 0.5}),
        ({"fid": "+0"}, {"delta_fid": 0.0}),
        ({"latency": "7ms", "memory": "1x", "fid": "+1"}, {"latency_ms": 7.0, "peak_bytes": 1000.0, "delta_fid": 1.0}),
    ],
)
def test_bounds_are_absolute_or_relative_to_dense(given: dict[str, str], bounds: dict[str, float]) -> None:
    assert resolved(**given) == bounds


@pytest.mark.parametrize(
    ("option", "texts"),
    [
        ("latency", ["", "fast", "-1ms", "0x", "5GB", "1e3ms", "x", "+1ms", "1ms2"]),
        ("memory", ["", "small", "-3MB", "0", "5ms", "8 gigabytes", "8gb"]),
        ("fid", ["", "good", "0", "-0.5", "+-1", "0.9x", "++1", "9" * 400]),
    ],
)
def test_other_texts_are_refused_with_what_is_accepted(option: Bounded, texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(UsageError) as caught:
            resolved(**{option: text})
        assert str(caught.value).startswith(f"--max-{option} {text!r}: expected a number: ")
        assert ACCEPTED[option] in str(caught.value)


@pytest.mark.parametrize(
    ("option", "unit", "least", "told"),
    [("latency", "ms", LEAST_MS, "3 ms"), ("memory", "B", LEAST_BYTES, "0.0002 MB")],
)
def test_exactly_what_no_policy_reaches_is_refused(option: str, unit: str, least: float, told: str) -> None:
    """The strongest level of every knob takes longer than the fastest policy: its weights cost time here."""
    assert resolved(**{option: f"{least + 1e-3}{unit}"})
    with pytest.raises(UsageError, match=rf"--max-{option}.*; the least reachable is {told}, predicted for 4090"):
        resolved(**{option: f"{least - 1e-3}{unit}"})


def test_what_is_relative_is_told_relative() -> None:
    with pytest.raises(UsageError, match=re.escape("the least reachable is 0.0002 MB (0.2x of dense), predicted")):
        resolved(memory="0.1x")
    with pytest.raises(UsageError, match=re.escape("--max-latency 0.1x: no policy has latency_ms of 1 ms; the least")):
        resolved(latency="0.1x")


def test_where_latency_is_measured_predictions_refuse_with_a_margin() -> None:
    measured = SPEED.model_copy(update={"origin": Origin.MEASURED})
    assert resolved(measured, latency="2ms") == {"latency_ms": 2.0}
    with pytest.raises(UsageError, match="least reachable is 3 ms, predicted for"):
        resolved(measured, latency="1.4ms")
    with pytest.raises(UsageError, match="least reachable"):
        resolved(measured, memory=f"{LEAST_BYTES - 1}B")


def test_policies_without_room_on_the_target_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FakeCosts.evaluate

    def cramped(self: FakeCosts, policy: Policy) -> Evidence:
        if all(scale.run for scale in policy.scales):
            raise EvaluationError("a batch needs more than there is")
        return whole(self, policy)

    monkeypatch.setattr(FakeCosts, "evaluate", cramped)
    assert resolved(latency="4ms") == {"latency_ms": 4.0}
    with pytest.raises(EvaluationError, match="a batch needs more"):
        resolved(latency="0.9x")


def test_a_bound_that_is_met_at_once_costs_one_prediction() -> None:
    costs = PredictedCosts(SPACE, "mnist", SPEED)
    costs.require(parse_bound("latency", "100ms"))
    assert len(costs.known) == 1
