"""What is asked for many policies at once, on both databases."""

from __future__ import annotations

from dataclasses import replace

from tests.db.samples import DENSE, QUALITY, RUN, SPEED, W8, trial
from varsearch.db import State, Store
from varsearch.db.knowledge import evaluated, known_before


def test_evaluated_are_the_policies_with_this_kind_of_evidence_for_these_weights_and_protocol(store: Store) -> None:
    store.save(QUALITY)
    store.save(QUALITY.model_copy(update={"policy": W8.digest}))
    store.save(SPEED)
    assert evaluated(store, "quality", "f" * 64, "q" * 64) == {DENSE.digest, W8.digest}
    assert evaluated(store, "speed", "f" * 64, "s" * 64) == {DENSE.digest}
    for kind, model, protocol in (("speed", "f", "q"), ("quality", "e", "q"), ("quality", "f", "s")):
        assert evaluated(store, kind, model * 64, protocol * 64) == frozenset()


def test_known_before_is_what_was_there_when_the_evaluation_began(store: Store) -> None:
    run = store.claim(RUN)
    store.save(QUALITY)
    store.save(QUALITY.model_copy(update={"policy": W8.digest, "protocol": "o" * 64}))
    for number, policy in enumerate((DENSE, W8)):
        store.write(run, replace(trial(number, policy), state=State.RUNNING, attempts=1))
    store.save(SPEED)
    store.save(QUALITY.model_copy(update={"policy": W8.digest}))
    assert known_before(store, run) == {(0, "quality")}
    assert known_before(store, store.claim(replace(RUN, name="second"))) == frozenset()
