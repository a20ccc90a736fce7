"""When a run has a profile, and what it starts from then."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.search import fakes
from tests.search.synthetic import SPEC, Synthetic
from varsearch.cli.app import app
from varsearch.errors import UsageError
from varsearch.evaluators.speed import SpeedEvaluator, protocol_for
from varsearch.measurement import METRICS, Origin, SpeedProtocol
from varsearch.models import zoo
from varsearch.policy import Policy
from varsearch.search.setup import guidance
from varsearch.search.setup import prepare as setup
from varsearch.search.setup.guidance import WORTH_PROFILING, guided
from varsearch.space.units import compose, settings
from varsearch.target import ModelSpec, Target

PROFILE = Synthetic(0).profile
STARTS = {"seed:dense": Policy.dense(6, 6), "preset:code": Synthetic(0).published["seed:lean"], "seed:w8": None}


def plan(**changes: Any) -> Any:
    settings = fakes.settings(**changes)
    worker, space = SimpleNamespace(model="mnist"), SimpleNamespace(spec=SPEC)
    return SimpleNamespace(settings=settings, worker=worker, space=space, starts=SimpleNamespace(by_origin=STARTS))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is stored, why there can be no profile, and how often one was made."""
    state: dict[str, Any] = {"stored": None, "refusal": "", "made": 0}

    def make(*_: Any, **__: Any) -> Any:
        state["made"] += 1
        return PROFILE

    monkeypatch.setattr(guidance, "known_profile", lambda *_: state["stored"])
    monkeypatch.setattr(guidance, "profiled", make)
    monkeypatch.setattr(guidance, "profile_refusal", lambda _: state["refusal"])
    return state


def test_a_long_search_makes_a_profile(calls: dict[str, Any]) -> None:
    told: list[str] = []
    guide, starts = guided(plan(), "x.db", WORTH_PROFILING, on_start=lambda: told.append("start"))
    assert guide is not None and guide.profile == PROFILE and calls["made"] == len(told) == 1
    assert list(starts.items()) == list(STARTS.items())


def test_a_search_that_is_to_start_from_a_profile_makes_it_however_short_it_is(calls: dict[str, Any]) -> None:
    guide, starts = guided(plan(), "x.db", 1, n_warm=12)
    assert guide is not None and guide.profile == PROFILE and calls["made"] == 1
    warm = [origin for origin in starts if origin.startswith("warm:")]
    assert list(starts) == ["seed:dense", *warm, *(origin for origin in STARTS if origin != "seed:dense")]
    assert 8 < len(warm) <= 12 and starts["seed:w8"] == STARTS["seed:w8"]


def test_a_short_search_makes_none_and_uses_what_is_stored(calls: dict[str, Any]) -> None:
    guide, starts = guided(plan(), "x.db", WORTH_PROFILING - 1)
    assert guide is not None and guide.profile is None and starts == STARTS
    calls["stored"] = PROFILE
    guide, starts = guided(plan(), "x.db", 1)
    assert guide is not None and guide.profile == PROFILE and starts == STARTS
    assert calls["made"] == 0


def test_no_profile_where_none_is_wanted_or_possible(calls: dict[str, Any]) -> None:
    calls["stored"] = PROFILE
    for refusal, use in (("", False), ("no classifier", True)):
        calls["refusal"] = refusal
        told: list[str] = []
        guide, starts = guided(plan(), "x.db", 500, use, on_refusal=told.append)
        assert told == [refusal] * bool(refusal)
        assert guide is not None and guide.profile is None and starts == STARTS
    blind = plan(quality=None, objectives=("latency_ms", "peak_bytes"))
    assert guided(blind, "x.db", 500) == (None, STARTS)
    for chosen, word in ((blind, "quality is not evaluated"), (plan(), "no classifier")):
        with pytest.raises(UsageError, match=word):
            guided(chosen, "x.db", 500, n_warm=9)
    assert calls["made"] == 0


def test_costs_are_exact_where_they_are_predicted(calls: dict[str, Any]) -> None:
    guide, _ = guided(plan(), "x.db", 1)
    assert guide is not None and guide.make_costs is not None
    assert pickle.loads(pickle.dumps(guide)).make_costs is not None
    found = guide.make_costs()(Policy.dense(6, 6))
    assert found["latency_ms"] > 0 and found["peak_bytes"] > 0 and set(found) <= set(METRICS)


def test_memory_is_exact_where_a_cpu_is_measured(calls: dict[str, Any]) -> None:
    def measured(device: str) -> SpeedProtocol:
        target = Target(device=device, dtype="float32", batch_size=4)
        return fakes.SPEED.model_copy(update={"origin": Origin.MEASURED, "target": target})

    guide, _ = guided(plan(speed=measured("cpu")), "x.db", 1)
    assert guide is not None and guide.make_costs is not None
    costs = pickle.loads(pickle.dumps(guide)).make_costs()
    evaluator = SpeedEvaluator(zoo.load("mnist"), protocol_for(Target(device="cpu", dtype="float32", batch_size=4)))
    spec = zoo.load("mnist").spec
    for policy in (Policy.dense(6, 6), policy_of(spec, "guidance=off from 3", "L0H1.keep=0", "L2.fc1=4bit")):
        found = costs(policy)
        assert not {"latency_ms", "speedup"} & set(found) and found["peak_bytes"] > 0
        assert found == {metric: evaluator.evaluate(policy).values[metric] for metric in found}
    guide, _ = guided(plan(speed=measured("4090")), "x.db", 1)
    assert guide is not None and guide.make_costs is None, "CUDA's allocator has its own figure"


def policy_of(spec: ModelSpec, *names: str) -> Policy:
    by_name = {setting.name: setting for setting in settings(spec)}
    return compose(spec, [by_name[name] for name in names])


@pytest.mark.parametrize(
    ("option", "asked_for"), [([], (True, 0)), (["--no-profile"], (False, 0)), (["--warm-starts", "9"], (True, 9))]
)
def test_the_command_line_says_whether_there_may_be_one(
    option: list[str], asked_for: tuple[bool, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    storage = str(tmp_path / "x.db")

    def stop(*arguments: Any) -> None:
        asked.extend(arguments)
        raise UsageError("seen enough")

    monkeypatch.setattr(setup, "prepare", lambda *_: plan())
    monkeypatch.setattr(guidance, "guided", stop)
    result = CliRunner().invoke(app, ["run", "--budget", "7", "--storage", storage, *option])
    assert isinstance(result.exception, UsageError)
    assert asked[1:5] == [storage, 7, *asked_for]


def test_warm_starts_without_a_profile_are_refused() -> None:
    result = CliRunner().invoke(app, ["run", "--no-profile", "--warm-starts", "3"])
    assert isinstance(result.exception, UsageError) and "--no-profile" in str(result.exception)
