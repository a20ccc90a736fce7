"""One contract for every database: what goes in comes out, once, and only for the process that owns the run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.db.samples import CALIBRATION, COSTS, QUALITY, RUN, SENSITIVITY, SPEED, W8, execute, trial
from varsearch.db import State, Store
from varsearch.errors import StoreError
from varsearch.measurement import METRICS, Evidence, Measurement
from varsearch.sensitivity_profile import Costs, Sensitivity


def test_evidence_comes_back_as_it_was_saved(storage: str, store: Store) -> None:
    store.save(QUALITY)
    with Store(storage) as later:
        assert later.find("quality", QUALITY.policy, QUALITY.model, QUALITY.protocol) == QUALITY


@pytest.mark.parametrize("field", ["kind", "policy", "model", "protocol"])
def test_evidence_is_found_by_its_whole_key_only(store: Store, field: str) -> None:
    store.save(QUALITY)
    key = {name: getattr(QUALITY, name) for name in ("kind", "policy", "model", "protocol")}
    assert store.find(**key) is not None
    assert store.find(**{**key, field: "speed" if field == "kind" else "0" * 64}) is None


def test_the_first_evidence_under_a_key_stays(storage: str, store: Store) -> None:
    later = QUALITY.model_copy(update={"seconds": 9.0})
    assert store.save(QUALITY) == QUALITY
    assert store.save(later) == QUALITY
    assert store.find("quality", QUALITY.policy, QUALITY.model, QUALITY.protocol) == QUALITY
    assert execute(storage, "SELECT count(*) FROM measurement") == [(2,)]


def test_processes_may_save_the_same_evidence_at_once(storage: str) -> None:
    with ExitStack() as stack:
        stores = [stack.enter_context(Store(storage)) for _ in range(4)]
        pool = stack.enter_context(ThreadPoolExecutor(4))
        for number in range(10):
            evidence = QUALITY.model_copy(update={"policy": f"{number:064}"})
            assert list(pool.map(Store.save, stores, [evidence] * 4)) == [evidence] * 4


def test_a_calibration_comes_back_and_the_first_one_stays(storage: str, store: Store) -> None:
    protocol = CALIBRATION.protocol
    assert store.calibration(CALIBRATION.fingerprint, protocol) is None
    assert store.save_calibration(CALIBRATION) == CALIBRATION
    assert store.save_calibration(CALIBRATION.model_copy(update={"seconds": 9.0})) == CALIBRATION
    with Store(storage) as later:
        assert later.calibration(CALIBRATION.fingerprint, protocol) == CALIBRATION
        assert later.calibration("0" * 64, protocol) is None
        assert later.calibration(CALIBRATION.fingerprint, protocol.model_copy(update={"seed": 1})) is None


def test_a_damaged_calibration_is_named(storage: str, store: Store) -> None:
    store.save_calibration(CALIBRATION)
    execute(storage, "UPDATE calibration SET body = '{}'")
    with pytest.raises(StoreError, match=r"calibration of ffffffffffff… is damaged: fingerprint.*delete its row"):
        store.calibration(CALIBRATION.fingerprint, CALIBRATION.protocol)


@pytest.mark.parametrize("part", [SENSITIVITY, COSTS], ids=lambda part: part.part)
def test_a_part_of_a_profile_comes_back(storage: str, store: Store, part: Sensitivity | Costs) -> None:
    kind, model, protocol = type(part), part.fingerprint, part.protocol
    assert store.profile(kind, model, protocol) is None
    assert store.save_profile(part) == part
    with Store(storage) as later:
        assert later.profile(kind, model, protocol) == part
        assert later.profile(kind, "0" * 64, protocol) is None
        assert later.profile(kind, model, protocol.model_copy(update={"settings": "other"})) is None


def test_a_profile_grows_and_its_first_numbers_stay(store: Store) -> None:
    effect = SENSITIVITY.effects["S2.skip=yes"]
    other = effect.model_copy(update={"nll": effect.shift})
    store.save_profile(SENSITIVITY)
    # Another process measured one of them too, and one more.
    more = SENSITIVITY.model_copy(update={"effects": {"S2.skip=yes": other, "S1.skip=yes": other}, "seconds": 1.0})
    grown = store.save_profile(more)
    assert grown.effects == {"S2.skip=yes": effect, "S1.skip=yes": other} and grown.seconds == 1.5
    assert store.profile(Sensitivity, SENSITIVITY.fingerprint, SENSITIVITY.protocol) == grown
    cost = COSTS.parts["dense"]
    costs = store.save_profile(COSTS.model_copy(update={"parts": {"a": cost}, "policies": {"b": cost}}))
    store.save_profile(COSTS)
    assert costs == COSTS.model_copy(update={"parts": {"a": cost}, "policies": {"b": cost}})
    found = store.profile(Costs, COSTS.fingerprint, COSTS.protocol)
    assert found is not None and found.parts == {"a": cost, "dense": cost} and found.policies == {"b": cost}


def test_a_damaged_profile_is_named(storage: str, store: Store) -> None:
    store.save_profile(COSTS)
    execute(storage, "UPDATE profile SET body = '{}'")
    with pytest.raises(
        StoreError, match=r"profile of ffffffffffff… is damaged: fingerprint.*row from the table 'profile'"
    ):
        store.profile(Costs, COSTS.fingerprint, COSTS.protocol)


def test_a_run_and_its_trials_come_back_with_their_evidence(storage: str, store: Store) -> None:
    run = store.claim(RUN)
    store.write(run, trial(0))
    store.write(run, replace(trial(1, W8), origin="sampler", state=State.RUNNING, attempts=1, worker="a"))
    store.save(QUALITY)
    store.save(SPEED)
    store.save(QUALITY.model_copy(update={"policy": W8.digest, "protocol": "other"}))
    with Store(storage) as later:
        dense, w8 = later.trials(later.run("first"))
    assert dense == replace(trial(0), quality=QUALITY, speed=SPEED)
    assert dense.values == {"fid": 0.1 + 0.2, "delta_fid": 0.0, "latency_ms": 1e-3}
    assert w8 == replace(trial(1, W8), origin="sampler", state=State.RUNNING, attempts=1, worker="a")
    assert store.policy(W8.digest) == W8
    found = store.run("first")
    assert (found.model, found.settings, found.status, found.driver) == ("mnist", '{"seed":0}', "running", run.driver)
    assert found.created is not None and datetime.now(UTC) - found.created < timedelta(minutes=1)


def test_results_are_plain_sql(storage: str, store: Store) -> None:
    run = store.claim(RUN)
    store.write(run, trial())
    store.save(SPEED)
    query = """
        SELECT trial.number, measurement.value, measurement.origin FROM trial
        JOIN evidence ON evidence.policy = trial.policy
        JOIN measurement ON measurement.evidence = evidence.id
        WHERE trial.run = 'first' AND metric = 'latency_ms'
    """
    assert execute(storage, query) == [(0, 1e-3, "predicted")]


def test_times_of_a_trial_follow_its_states(storage: str, store: Store) -> None:
    run, times = store.claim(RUN), []
    for state in (State.WAITING, State.RUNNING, State.COMPLETE):
        store.write(run, replace(trial(), state=state))
        times += execute(storage, "SELECT started IS NOT NULL, finished IS NOT NULL FROM trial")
    assert [tuple(map(bool, row)) for row in times] == [(False, False), (True, False), (True, True)]


@pytest.mark.parametrize("state", [State.COMPLETE, State.FAIL])
def test_a_trial_gets_one_outcome(store: Store, state: State) -> None:
    run = store.claim(RUN)
    store.write(run, replace(trial(), state=state, error="first"))
    with pytest.raises(StoreError, match=f"trial 0 of run first has its outcome already: {state}"):
        store.write(run, replace(trial(), state=State.FAIL, error="second"))
    assert store.trials(run)[0].error == "first"


def test_a_policy_is_tried_once_per_run_and_shared_between_runs(storage: str, store: Store) -> None:
    first, second = store.claim(RUN), store.claim(replace(RUN, name="second"))
    store.write(first, trial(0))
    store.write(second, trial(0))
    with pytest.raises(StoreError):
        store.write(first, trial(1))
    assert execute(storage, "SELECT count(*) FROM policy") == [(1,)]


def test_only_the_last_process_that_claimed_a_run_writes_to_it(storage: str, store: Store) -> None:
    before = store.claim(RUN)
    store.write(before, trial(0))
    with Store(storage) as other:
        after = other.claim(RUN)
        with pytest.raises(StoreError, match="run first was continued by another process"):
            store.write(before, trial(1, W8))
        with pytest.raises(StoreError, match="another process"):
            store.leave(before, "finished")
        other.write(after, trial(1, W8))
        other.leave(after, "finished")
    assert [t.number for t in store.trials(after)] == [0, 1]
    assert store.run("first").status == "finished"


def test_a_failed_write_leaves_nothing(storage: str, store: Store) -> None:
    before, _ = store.claim(RUN), store.claim(RUN)
    with pytest.raises(StoreError):
        store.write(before, trial())
    assert execute(storage, "SELECT (SELECT count(*) FROM trial), (SELECT count(*) FROM policy)") == [(0, 0)]


def test_unknown_names_say_what_there_is(store: Store) -> None:
    with pytest.raises(StoreError, match="has no run 'x': it has none yet"):
        store.run("x")
    store.claim(RUN)
    with pytest.raises(StoreError, match="has no run 'x': it has first"):
        store.run("x")
    with pytest.raises(StoreError, match="has no policy 0000"):
        store.policy("0" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE policy SET body = '{'", "stored policy .* is damaged"),
        ("""UPDATE policy SET body = '{"layers":[{}],"scales":[{}]}'""", "its content has digest"),
        (
            "UPDATE evidence SET seconds = -1, kind = 'quality', environment = '[]'",
            "evidence 1 is damaged: environment",
        ),
    ],
)
def test_damaged_rows_are_refused(storage: str, store: Store, change: str, message: str) -> None:
    run = store.claim(RUN)
    store.write(run, trial())
    store.save(QUALITY)
    execute(storage, change)
    with pytest.raises(StoreError, match=message):
        store.trials(run)


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(st.sampled_from(list(METRICS)), unique=True, max_size=4).flatmap(
        lambda names: st.tuples(
            *(
                st.builds(
                    Measurement,
                    metric=st.just(name),
                    value=FLOATS,
                    low=st.none() | FLOATS,
                    high=st.none() | FLOATS,
                    n=st.integers(0, 2**31 - 1),
                    note=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
                )
                for name in names
            )
        )
    ),
    FLOATS.filter(lambda x: x >= 0),
)
def test_any_number_survives(sqlite_store: Store, measurements: tuple[Measurement, ...], seconds: float) -> None:
    evidence = Evidence(
        kind="quality", policy="p", model="m", protocol=str(hash((measurements, seconds))),
        measurements=measurements, seconds=seconds,
    )  # fmt: skip
    sqlite_store.save(evidence)
    assert sqlite_store.find("quality", "p", "m", evidence.protocol) == evidence


@pytest.fixture(scope="module")
def sqlite_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("store") / "runs.db") as store:
        yield store
