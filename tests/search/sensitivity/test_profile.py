from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.search.support.fake_profile import Calls, fake_evaluators
from tests.search.support.profiles import BATCH
from varsearch.errors import Interrupted
from varsearch.evaluators import costs
from varsearch.evaluators.cost_model import predicted_protocol
from varsearch.evaluators.costs import CostEvaluator
from varsearch.measurement import Evidence, Measurement, Origin, SpeedProtocol
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy
from varsearch.search.sensitivity import profile
from varsearch.search.sensitivity.profile import Step, known_profile, profiled
from varsearch.space.settings import Setting
from varsearch.target import default_target, find_device

RTX = default_target(find_device("4090"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return fake_evaluators(monkeypatch)


def test_everything_is_measured_once(calls: Calls, tmp_path: Path) -> None:
    steps: list[Step] = []
    found = profiled("mnist", RTX, tmp_path / "p.db", on_step=steps.append)
    counts = {what: calls.count(what) for what in set(calls)}
    assert counts == {"effect": 484 + 10 + 12, "predicted": 94 + 1, "end_to_end": 12 + 1}
    assert len(found.sensitivity.effects) == 506 and len(found.costs.parts) == 95 and len(found.costs.policies) == 13
    assert [step.done for step in steps] == list(range(1, 615)) and steps[0].left == 613 and steps[-1].left == 0
    assert steps[0].seconds_left > 0 == steps[-1].seconds_left
    assert found.siblings[0].name == "mnist-small" and found.spec.name == "mnist"
    calls.clear()
    assert profiled("mnist", RTX, tmp_path / "p.db") == found and not calls
    assert known_profile("mnist", RTX, tmp_path / "p.db") == found and not calls
    assert known_profile("mnist", default_target(find_device("h100")), tmp_path / "p.db") is None, "no costs yet"


def test_another_target_only_costs(calls: Calls, tmp_path: Path) -> None:
    first = profiled("mnist", RTX, tmp_path / "p.db")
    calls.clear()
    other = profiled("mnist", default_target(find_device("h100")), tmp_path / "p.db")
    assert set(calls) == {"predicted", "end_to_end"} and other.sensitivity == first.sensitivity
    assert other.costs.protocol.speed.target.device == "h100"
    calls.clear()
    profiled("mnist", RTX, tmp_path / "p.db", seed=1)
    assert "effect" in calls  # other noise


def test_a_stored_profile_is_found_with_any_number_of_threads(calls: Calls, tmp_path: Path) -> None:
    here = default_target(find_device("cpu"))
    found = profiled("mnist", here, tmp_path / "p.db")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):  # a measured protocol says how many there are
            torch.set_num_threads(threads)
            assert known_profile("mnist", here, tmp_path / "p.db") == found
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("stop", [200, 605])
def test_an_interrupted_profile_goes_on_where_it_stopped(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    monkeypatch.setattr(profile, "SAVE_SECONDS", 1e9)
    whole = profiled("mnist", RTX, tmp_path / "whole.db")
    calls.clear()
    calls.stop = stop
    with pytest.raises(Interrupted, match="what was measured is stored, and the same command goes on"):
        profiled("mnist", RTX, tmp_path / "p.db")
    assert len(calls) == stop
    calls.stop = None
    resumed = profiled("mnist", RTX, tmp_path / "p.db")
    assert len(calls) == 614
    assert resumed.sensitivity.effects == whole.sensitivity.effects
    assert (resumed.costs.parts, resumed.costs.policies) == (whole.costs.parts, whole.costs.policies)


def test_a_killed_profile_loses_little(calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "SAVE_SECONDS", 0.0)
    stored: list[int] = []
    save = profile.Store.save_profile

    def counting(self: profile.Store, found: profile.Sensitivity) -> profile.Sensitivity:
        stored.append(len(getattr(found, "effects", ())))
        return save(self, found)

    monkeypatch.setattr(profile.Store, "save_profile", counting)
    calls.stop = 20
    with pytest.raises(Interrupted):
        profiled("mnist", RTX, tmp_path / "p.db")
    assert set(range(1, 21)) <= set(stored)


class Timed:
    """Times dense at 100 ms, then at 300 ms on a machine that slowed down; every other policy is twice as fast."""

    def __init__(self, model: ImageModel, protocol: SpeedProtocol) -> None:
        self.model, self.protocol, self.dense_ms = model, protocol, 100.0

    def evaluate(self, policy: Policy) -> Evidence:
        speedup = 1.0 if policy == Policy.dense(6, 6) else 2.0
        values = {**dict(BATCH), "latency_ms": self.dense_ms / speedup, "speedup": speedup}
        self.dense_ms = 300.0
        return Evidence(
            kind="speed",
            policy=policy.digest,
            model="",
            protocol="",
            measurements=tuple(Measurement(metric=name, value=value) for name, value in values.items()),
            seconds=0.0,
        )


def test_whole_policies_are_measured_where_the_target_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "SpeedEvaluator", Timed)
    cpu = default_target(find_device("cpu"))
    dense = Policy.dense(6, 6)
    policy = Setting("guidance", 4).apply(dense)
    measuring = CostEvaluator("mnist", profile.speed_protocol(cpu))
    assert measuring.protocol.origin is Origin.MEASURED
    assert measuring.end_to_end(policy).latency_ms == 50  # drift counts for nothing
    assert measuring.end_to_end(dense).latency_ms == 100
    assert measuring.end_to_end(policy).peak_bytes == BATCH.peak_bytes
    later = CostEvaluator("mnist", measuring.protocol, dense_ms=80.0)
    assert later.end_to_end(policy).latency_ms == 40
    predicting = CostEvaluator("mnist", predicted_protocol(cpu))
    assert predicting.end_to_end(policy) == measuring.predicted(policy)
