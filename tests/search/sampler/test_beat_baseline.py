"""A published system combined with settings that do no harm to dense."""

from __future__ import annotations

from dataclasses import replace

from tests.search.interacting import (
    beat_baseline,
    front_posterior,
    information,
    problem,
    proposed,
    starts,
    trial,
    with_loss,
)
from tests.search.synthetic import SPEC
from varsearch.db import State, TrialRecord
from varsearch.policy import Policy, SparseAttention
from varsearch.search.core.dominance import domination
from varsearch.search.sampler.beat_baseline import Baseline, BeatBaselineConfig, combined
from varsearch.search.sensitivity.decomposition import compose, other_fields, settings_of

SETTINGS, CONFIG = problem().settings, BeatBaselineConfig()


def named(name: str, number: int, loss: float, half: float = 0.5) -> TrialRecord:
    origin = f"seed:{name}"
    return with_loss(trial(number, problem().published[origin], origin), loss, half)


def known() -> tuple[list[TrialRecord], TrialRecord]:
    """Dense, three policies that save something, the first of which loses much, and a published system."""
    dense, rival = starts(1)[0], replace(named("w8", 4, 0.3), origin="preset:x")
    return [dense, named("lean", 1, 3.0), named("unguided-last", 2, -0.2), named("kv-none", 3, 0.05), rival], rival


class Memory(dict[str, float]):
    """Peak memory by digest; hashed by identity, as functions are."""

    __hash__ = object.__hash__

    def __call__(self, policy: Policy) -> dict[str, float]:
        return {"peak_bytes": self.get(policy.digest, 8e7)}


def units(policy: Policy) -> set[str]:
    return {setting.name for setting in settings_of(policy)}


def test_what_loses_least_is_added_first_and_each_once() -> None:
    trials, rival = known()
    seen = {t.policy.digest for t in trials}
    for added in (trials[2], trials[3]):
        found = combined(SETTINGS, SPEC, rival, trials, seen)
        assert found is not None and units(found) == units(rival.policy) | units(added.policy)
        seen.add(found.digest)
    assert combined(SETTINGS, SPEC, rival, trials, seen) is None, "the other one loses much"


def test_what_the_system_sets_stays_as_it_is() -> None:
    trials, _ = known()
    rival = replace(named("w4", 5, 0.3), origin="preset:w4")
    mild = named("mild", 6, -0.5)  # 8-bit weights among others
    found = combined(SETTINGS, SPEC, rival, [trials[0], rival, mild], {rival.policy.digest})
    assert found is not None and units(rival.policy) < units(found)
    assert {s.value.bits for s in settings_of(found) if s.kind == "bits"} == {4, 8}
    bits = [{s.name for s in settings_of(policy) if s.kind == "bits"} for policy in (found, rival.policy)]
    assert bits[0] == bits[1]


def test_what_costs_more_than_dense_or_has_no_numbers_is_not_added() -> None:
    trials, rival = known()
    assert trials[0].speed is not None
    slower = tuple(m.model_copy(update={"value": 1.01 * m.value}) for m in trials[0].speed.measurements)
    dearer = replace(trials[2], speed=trials[0].speed.model_copy(update={"measurements": slower}))
    failed = replace(trials[2], number=8, state=State.FAIL, quality=None, speed=None)
    assert combined(SETTINGS, SPEC, rival, [trials[0], rival, dearer, failed], {rival.policy.digest}) is None


def test_a_system_that_units_cannot_say_is_left_alone() -> None:
    trials, rival = known()
    band = SparseAttention(band=((1,) * SPEC.n_heads,) * len(SPEC.scales))
    banded = rival.policy.layers[0].model_copy(update={"attention": band})
    policy = rival.policy.model_copy(update={"layers": (banded, *rival.policy.layers[1:])})
    odd = replace(rival, policy=policy)
    assert other_fields(odd.policy)
    assert combined(SETTINGS, SPEC, odd, [*trials[:-1], odd], set()) is None


def test_proposals_against_a_system_combine_it_until_nothing_is_left_to_add() -> None:
    trials, rival = known()
    seen = {t.policy.digest for t in trials}
    for left in (2, 1, 0):
        together = combined(SETTINGS, SPEC, rival, trials, seen)
        found = proposed(beat_baseline(trials), 0, seen)
        assert found != rival.policy
        assert (together == found) if left else (together is None)
        seen.add(found.digest)


def test_what_would_leave_settings_of_the_system_without_effect_is_not_added() -> None:
    trials, _ = known()
    rival = replace(named("shared-last", 5, 0.3), origin="preset:x")  # which is the scale that has no guidance there
    seen = {t.policy.digest for t in (*trials, rival)}
    found = combined(SETTINGS, SPEC, rival, [trials[0], trials[2], rival], seen)
    assert found is None
    assert combined(SETTINGS, SPEC, rival, [trials[0], trials[3], rival], seen) is not None


def test_what_is_known_to_cost_more_than_the_system_or_a_bound_is_not_tried() -> None:
    trials, rival = known()
    bounded = SETTINGS.model_copy(update={"bounds": {"peak_bytes": 5e7}})
    for settings, memory, fits in ((SETTINGS, 7e7, True), (SETTINGS, 9e7, False), (bounded, 6e7, False)):
        costs = Memory({trials[3].policy.digest: memory})
        front = front_posterior(trials, settings)
        assert front.complete[-1] is rival
        baseline = Baseline(front, len(trials) - 1, information(costs=costs), CONFIG)
        assert baseline.fits(trials[3].policy) is fits
    beyond = combined(bounded, SPEC, rival, trials, {rival.policy.digest})
    assert beyond is None, "nothing that is added keeps to the bound itself"


def test_what_loses_nothing_at_all_is_likely_enough() -> None:
    trials, rival = known()
    nothing = with_loss(trials[3], 0.0, 0.5)
    share = domination(SETTINGS, [nothing.metrics], trials[0].metrics)[0]
    assert CONFIG.likely < share < 0.6
    assert combined(SETTINGS, SPEC, rival, [trials[0], nothing, rival], {rival.policy.digest}) is not None


def test_what_did_harm_to_the_system_is_not_added_with_more() -> None:
    trials, rival = known()
    seen = {t.policy.digest for t in trials}
    added = trials[2], trials[3]
    first = combined(SETTINGS, SPEC, rival, trials, seen)
    assert first is not None and units(first) == units(rival.policy) | units(added[0].policy)
    policy = compose(SPEC, {s.unit: s for t in added for s in settings_of(t.policy)}.values())
    both = with_loss(trial(5, policy, "surrogate"), -0.3, 0.5)
    for loss, harmful in ((3.0, True), (0.4, False)):
        tried = with_loss(trial(6, first, "rival"), loss, 0.5)
        found = combined(SETTINGS, SPEC, rival, [*trials, both, tried], {*seen, first.digest})
        assert found is not None
        assert (units(added[0].policy) <= units(found)) is not harmful
        assert units(added[1].policy) <= units(found)


def test_as_good_is_no_harm_however_lucky_the_system_was() -> None:
    """A ΔFID below 0 counts as 0: nothing is better than a system with a lucky one."""
    trials, _ = known()
    rival = replace(named("w8", 4, -0.5, 0.3), origin="preset:x")
    trials = [*trials[:-1], rival]
    seen = {t.policy.digest for t in trials}
    first = combined(SETTINGS, SPEC, rival, trials, seen)
    assert first is not None
    tried = with_loss(trial(6, first, "rival"), -0.4, 0.3)
    policy = compose(SPEC, {s.unit: s for t in trials[2:4] for s in settings_of(t.policy)}.values())
    both = with_loss(trial(5, policy, "surrogate"), -0.6, 0.3)
    found = combined(SETTINGS, SPEC, rival, [*trials[:3], rival, both, tried], {*seen, first.digest})
    assert found is not None and units(first) <= units(found)


def test_quality_that_is_only_bounded_counts_and_without_any_nothing_is_combined() -> None:
    trials, rival = known()
    seen = {t.policy.digest for t in trials}
    fast = SETTINGS.model_copy(update={"objectives": ("speedup", "peak_bytes")})
    assert combined(fast, SPEC, rival, trials, seen) is None
    bounded = fast.model_copy(update={"bounds": {"delta_fid": 5.0}})
    added = []
    while (found := combined(bounded, SPEC, rival, trials, seen)) is not None:
        added.append(units(found) - units(rival.policy))
        seen.add(found.digest)
    assert added == [units(trials[2].policy), units(trials[3].policy)], "the other one loses 3, less than the bound"
