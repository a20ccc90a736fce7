"""Every published system beside every setting: they meet in one policy, or contradict each other both ways."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.space.calibrations import random_calibration
from tests.space.test_settings import MNIST, SIBLING
from varsearch.errors import PolicyError
from varsearch.policy import Policy
from varsearch.space.presets import PRESETS, presets
from varsearch.space.presets.assumed import assumed
from varsearch.space.settings import (
    KINDS,
    Setting,
    candidates,
    composable,
    compose,
    effective,
    settings_of,
)

SPEC = MNIST.model_copy(update={"n_layers": 3, "n_heads": 2})
ALL = candidates(SPEC, [SIBLING])
DENSE = Policy.dense(SPEC.n_layers, len(SPEC.scales))
ASSUMED, CALIBRATED = (presets(SPEC, found(SPEC), [SIBLING])[0] for found in (assumed, random_calibration))
SYSTEMS = {**{f"{name} (assumed)": p for name, p in ASSUMED.items()}, **CALIBRATED}
BESIDE = [*ALL, *{s for p in SYSTEMS.values() for s in settings_of(p) if not KINDS[s.kind].spelling}]


def test_all_systems_are_here() -> None:
    assert CALIBRATED.keys() == PRESETS.keys() and len(PRESETS) == 16


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_exactly_its_settings(name: str) -> None:
    policy = SYSTEMS[name]
    rebuilt = compose(SPEC, reversed(settings_of(policy)))
    assert rebuilt == policy and rebuilt.digest == policy.digest


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_with_each_setting(name: str) -> None:
    policy = SYSTEMS[name]
    own = {s.unit: s for s in settings_of(policy)}
    fitting = 0
    for setting in ALL:
        both = composable(SPEC, (*own.values(), setting))
        if both is None:
            with pytest.raises(PolicyError, match="contradicts the policy"):
                setting.apply(policy)
            continue
        fitting += 1
        assert setting.apply(policy) == both
        found = {s.unit: s for s in settings_of(both)}
        assert both.digest == compose(SPEC, found.values()).digest
        # All of the system stays, but for the unit that was set and what a frame leaves without effect.
        kept = {s for s in effective((*own.values(), setting)) if s.unit != setting.unit and s.kind != "guidance"}
        assert kept <= {*found.values()}
        if setting.unit not in own and found.keys() == own.keys() | {setting.unit}:
            assert setting.remove(both) == policy
    assert fitting > len(ALL) / 2


@settings(max_examples=400)
@given(st.sampled_from(BESIDE), st.sampled_from(BESIDE))
def test_settings_of_different_units_commute(a: Setting, b: Setting) -> None:
    if a.unit == b.unit:
        return

    def in_turn(first: Setting, second: Setting) -> Policy | None:
        try:
            return second.apply(first.apply(DENSE))
        except PolicyError:
            return None

    assert in_turn(a, b) == in_turn(b, a)


@settings(max_examples=200)
@given(st.sampled_from(sorted(SYSTEMS)), st.sampled_from(sorted(SYSTEMS)), st.integers(0, 2**32))
def test_parts_of_two_systems_meet(first: str, second: str, seed: int) -> None:
    """Half of the settings of each, as a crossover has them: a policy that is its settings, or a contradiction."""
    rng = random.Random(seed)
    parts = [s for name in (first, second) for s in settings_of(SYSTEMS[name]) if rng.random() < 0.5]
    policy = composable(SPEC, parts)
    if policy is not None:
        policy.check(SPEC)
        assert compose(SPEC, settings_of(policy)) == policy
