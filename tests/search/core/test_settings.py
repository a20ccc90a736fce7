from __future__ import annotations

import math

import pytest

from tests.search.support.fakes import QUALITY, SPEED, settings
from varsearch.errors import StoreError, UsageError
from varsearch.measurement import Origin
from varsearch.search.core.settings import RunSettings, named_objectives
from varsearch.target import Target

VALUES = {"delta_fid": 0.5, "latency_ms": 80.0, "peak_bytes": 1e6, "precision": 0.9, "speedup": 1.25}


def test_stored_settings_come_back_equal() -> None:
    given = settings(bounds={"delta_fid": 0.5}, seed=3)
    assert RunSettings.parse(given.model_dump_json()) == given
    assert given.difference(given) == ""


def test_later_settings_are_refused_in_one_line() -> None:
    with pytest.raises(StoreError, match="damaged or of a newer version: later: unknown field"):
        RunSettings.parse(settings().model_dump_json()[:-1] + ',"later":1}')
    with pytest.raises(StoreError, match="newer version: unknown metric 'beauty'"):
        RunSettings.parse(settings().model_dump_json().replace("delta_fid", "beauty"))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"bounds": {"delta_fid": 0.5}}, "bounds.delta_fid was None, is 0.5"),
        ({"quality": QUALITY.model_copy(update={"n_images": 4})}, "quality.n_images was 2, is 4"),
        (
            {"speed": SPEED.model_copy(update={"target": Target(device="cpu", dtype="float16", batch_size=256)})},
            "speed.target.device was 4090, is cpu",
        ),
    ],
)
def test_difference_names_the_setting_and_the_default_name_changes(changes: dict[str, object], difference: str) -> None:
    assert settings().difference(settings(**changes)) == difference
    assert settings().default_name != settings(**changes).default_name


def test_default_name_says_model_and_device() -> None:
    assert settings(model="models/mine").default_name.startswith("mine-4090-")
    assert settings(model="var-d16@/home/me/weights").default_name.startswith("var-d16-4090-")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quality": None}, "delta_fid is a metric of quality, which this run does not evaluate"),
        ({"quality": None, "objectives": ("flops",), "bounds": {"nll": 1.0}}, "nll is a metric of quality"),
        ({"objectives": ("fid", "beauty")}, "unknown metric 'beauty': known metrics are fid, "),
        ({"bounds": {"beauty": 1.0}}, "unknown metric 'beauty'"),
        ({"objectives": ()}, "one to four different metrics"),
        ({"objectives": ("fid", "fid")}, "one to four different metrics"),
        ({"objectives": ("fid", "nll", "kid", "flops", "peak_bytes")}, "one to four different metrics"),
        ({"bounds": {"latency_ms": 0.0}}, "no policy has latency_ms of 0.0 or less"),
        ({"bounds": {"peak_bytes": -1.0}}, "no policy has peak_bytes of -1.0 or less"),
        ({"bounds": {"recall": 1.5}}, "no policy has recall of 1.5 or more"),
        ({"bounds": {"delta_fid": math.nan}}, "must be a finite number, got nan"),
        ({"bounds": {"delta_fid": math.inf}}, "must be a finite number, got inf"),
    ],
)
def test_senseless_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(**changes)


def test_delta_fid_may_have_to_improve() -> None:
    assert settings(bounds={"delta_fid": -0.5}).is_feasible({"delta_fid": -0.6})


def test_stored_runs_keep_their_identity() -> None:
    assert settings().default_name == "fake-4090-f724c9e5", "as before quality could be left out"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ("delta_fid", "latency_ms", "peak_bytes")),
        (("memory", "fid", "latency"), ("delta_fid", "latency_ms", "peak_bytes")),
        (("memory", "latency"), ("latency_ms", "peak_bytes")),
        (("memory", "fid"), ("delta_fid", "peak_bytes")),
        (("nll", "latency"), ("nll", "latency_ms")),
        (("fid", "latency_ms"), ("fid", "latency_ms")),
    ],
)
def test_objectives_by_the_names_that_people_use(given: tuple[str, ...] | None, expected: tuple[str, ...]) -> None:
    assert named_objectives(given, Origin.PREDICTED) == expected
    measured = tuple(
        "speedup" if name == "latency_ms" and "latency_ms" not in (given or ()) else name for name in expected
    )
    assert named_objectives(given, Origin.MEASURED) == measured


def test_unknown_and_repeated_objectives_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown metric 'beauty': known are fid, latency, memory, or metrics: fid, d"):
        named_objectives(("latency", "beauty"), Origin.PREDICTED)
    with pytest.raises(UsageError, match="different metrics"):
        settings(objectives=named_objectives(("latency", "latency"), Origin.PREDICTED))


def test_losses_are_minimized() -> None:
    assert settings(objectives=("delta_fid", "precision")).losses(VALUES) == (0.5, -0.9)


def test_violations_are_shares_of_the_bounds_in_the_order_of_their_names() -> None:
    bounded = settings(bounds={"precision": 0.75, "delta_fid": 0.4, "latency_ms": 160.0, "speedup": 2.5})
    assert bounded.violations(VALUES) == pytest.approx([0.25, -0.5, -0.2, 0.5])
    assert not bounded.is_feasible(VALUES)


def test_a_bound_of_zero_is_not_divided_by() -> None:
    assert settings(bounds={"delta_fid": 0.0}).violations(VALUES) == [0.5]


@pytest.mark.parametrize(("value", "feasible"), [(0.5, True), (0.5000001, False)])
def test_the_bound_itself_is_feasible(value: float, feasible: bool) -> None:
    assert settings(bounds={"delta_fid": 0.5}).is_feasible({"delta_fid": value}) is feasible


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_missing_and_infinite_numbers_are_named(value: float | None) -> None:
    values = {name: x for name, x in (VALUES | {"latency_ms": value}).items() if x is not None}
    expected = "the evaluation gave no latency_ms" if value is None else f"the evaluation gave latency_ms = {value}"
    assert settings().missing(values) == expected
    assert settings(objectives=("delta_fid",), bounds={"latency_ms": 1.0}).missing(values) == expected
    assert settings(objectives=("delta_fid",)).missing(values) == ""


def test_seemingly_better_than_dense_counts_as_equal() -> None:
    chosen = settings(objectives=("delta_fid", "latency_ms"))
    assert chosen.losses({"delta_fid": -0.3, "latency_ms": 5.0}) == (0.0, 5.0)
    assert chosen.losses({"delta_fid": 0.3, "latency_ms": 5.0}) == (0.3, 5.0)
    assert settings(objectives=("kid", "recall")).losses({"kid": -0.1, "recall": 0.5}) == (-0.1, -0.5)
