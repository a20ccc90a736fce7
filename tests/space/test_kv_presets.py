"""Presets of KV compression: head classes, budgets within what was asked for, published rules."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.space.calibrations import random_calibration
from varsearch.policy import Policy, Selection, share_of
from varsearch.space.presets.budgets import contextual_heads, proportional, share_within
from varsearch.space.presets.hack import hack
from varsearch.space.presets.hackpp import hackpp
from varsearch.space.presets.scalekv import scalekv
from varsearch.target import ModelSpec


def spec_of(layers: int, heads: int, sides: tuple[int, ...]) -> ModelSpec:
    return ModelSpec(
        name="m", n_layers=layers, n_heads=heads, head_dim=32, scales=tuple((s, s) for s in sides), classes=10,
        image_size=(32, 32),
    )  # fmt: skip


SMALL = spec_of(6, 4, (1, 2, 3, 4, 6, 8))
LARGE = spec_of(16, 16, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
HUGE = spec_of(4, 2, (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
SPECS = [SMALL, LARGE, HUGE]
specs = st.builds(
    spec_of, st.integers(1, 5), st.integers(1, 5),
    st.lists(st.integers(2, 12), min_size=1, max_size=5).map(lambda sides: (1, *sorted(sides))),
)  # fmt: skip


def kept(policy: Policy, spec: ModelSpec, scale: int) -> float:
    """Entries that stay after a scale, over those of the dense cache at its fullest."""
    seen = list(accumulate(spec.tokens))
    shares = [share for layer in policy.layers for share in layer.kv.cached(scale, spec.n_heads)]
    return sum(share_of(share, seen[scale]) for share in shares) / len(shares) / seen[-2]


PRESETS = {
    "hack": lambda spec, c, ratio: hack(spec, c, 1 - ratio),
    "hackpp": lambda spec, c, ratio: hackpp(spec, c, cache=ratio),
    "scalekv": scalekv,
}


@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=60)
@given(specs, st.integers(0, 9), st.floats(0.05, 1))
def test_no_scale_keeps_more_than_was_asked_for(name: str, spec: ModelSpec, seed: int, ratio: float) -> None:
    policy = PRESETS[name](spec, random_calibration(spec, seed), ratio)
    policy.check(spec)
    # HACK's queries see what is kept, so a head keeps at least one step of the grid.
    least = (
        max(share_of(1 / 80, n) / sum(spec.tokens[:-1]) for n in accumulate(spec.tokens[:-1])) if name == "hack" else 0
    )
    assert all(kept(policy, spec, k) <= max(ratio, least) + least + 1e-9 for k in range(len(spec.scales) - 1))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec.n_layers))
def test_the_budget_is_used(name: str, spec: ModelSpec) -> None:
    ratio = 0.3 if name == "hack" else 0.1
    policy = PRESETS[name](spec, random_calibration(spec), ratio)
    # Rounded down to entries and to the grid: up to one entry, or one step of the grid, per head.
    assert kept(policy, spec, len(spec.scales) - 2) > 0.8 * ratio


def test_no_compression_is_dense() -> None:
    dense = Policy.dense(6, 6)
    assert hack(SMALL, random_calibration(SMALL), 0.0) == dense
    assert hackpp(SMALL, random_calibration(SMALL), attention=1.0, cache=1.0) == dense
    assert scalekv(SMALL, random_calibration(SMALL), 1.0) == dense


def test_contextual_heads_are_those_of_least_variance_in_all_layers() -> None:
    calibration = random_calibration(SMALL).model_copy(update={"column_variance": ((5, 1, 2, 9), (8, 7, 3, 4))})
    assert contextual_heads(calibration, 0.5) == ((False, True, True, False), (False, False, True, True))
    assert contextual_heads(calibration, 0.25) == ((False, True, True, False), (False,) * 4)


def test_hack_couples_both_budgets_and_follows_the_classes() -> None:
    calibration = random_calibration(LARGE)
    policy = hack(LARGE, calibration)
    for layer, heads in zip(policy.layers, contextual_heads(calibration, 0.5), strict=True):
        assert layer.kv.cache_budget[:-1] == layer.kv.attention_budget[:-1]
        assert [rule.recent for rule in layer.kv.selection] == [not c for c in heads]
        assert {rule.queries for rule in layer.kv.selection} == {32}
        small, large = (
            {s for s, c in zip(layer.kv.cached(8, 16), heads, strict=True) if c is kind} for kind in (True, False)
        )
        assert not small or not large or max(small) < min(large)


def test_hackpp_gives_more_to_layers_that_are_relied_on() -> None:
    calibration = random_calibration(LARGE)
    mass = tuple(
        tuple(
            tuple((*((0.9 if i == 0 else 0.1) / max(k, 1) for _ in range(k)), 0.1) for _ in range(16))
            for i in range(16)
        )
        for k in range(10)
    )
    policy = hackpp(LARGE, calibration.model_copy(update={"scale_mass": mass}))
    first, *others = (layer.kv.cached(8, 16)[0] for layer in policy.layers)
    assert all(first > 4 * other for other in others)


def test_hackpp_priors_are_attention_per_key() -> None:
    spec = spec_of(1, 1, (1, 2, 4))
    mass = (((((1.0,),),)), (((0.5, 0.5),),), (((0.1, 0.1, 0.8),),))
    calibration = random_calibration(spec).model_copy(update={"scale_mass": mass})
    policy = hackpp(spec, calibration, contextual=0.0)
    # Per key: 0.5 and 0.125 at scale 1; 0.1, 0.025 and 0.05 at scale 2.
    assert policy.layers[0].kv.selection == (Selection(prior=((0,), (0, 6), (0, 6, 3))),)


def test_scalekv_drafters_are_the_layers_of_least_selectivity_at_the_next_scale() -> None:
    calibration = random_calibration(LARGE)
    policy = scalekv(LARGE, calibration)
    for k in (5, 8):
        top = calibration.history_top[k + 1]
        own = [sum(head[k + 1] for head in heads) * top[i] for i, heads in enumerate(calibration.scale_mass[k + 1])]
        budgets = [layer.kv.cached(k, 16)[0] for layer in policy.layers]
        assert budgets.index(max(budgets)) == own.index(min(own))
        assert len(set(budgets)) == 2


def test_scalekv_of_the_published_size_has_the_published_budgets() -> None:
    """Infinity-8B at 10 %: 40 layers, 3 drafters; refiners lose 70 tokens per scale, drafters get the rest."""
    spec = spec_of(40, 2, (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
    policy = scalekv(spec, random_calibration(spec), 650 / 6425)
    tokens = 6425
    counts = sorted(share_of(layer.kv.cached(11, 2)[0], tokens) for layer in policy.layers)
    # In steps of 1/80, which are 80 tokens here: 650 - 70 * (k - first) at most.
    assert len(set(counts[:37])) == 1 and 150 <= counts[0] <= 350
    assert len(set(counts[37:])) == 1 and counts[-1] > 4000
    assert policy.layers[0].kv.selection[0] == Selection(grid=True, pool="mean")


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=20), st.floats(0, 1), st.floats(0.1, 100))
def test_proportional_keeps_mean_and_bound(weights: list[float], part: float, most: float) -> None:
    found = proportional(weights, part * most, most)
    assert sum(found) / len(found) == pytest.approx(part * most)
    assert max(found) <= most * (1 + 1e-9)
    below = [f / w for f, w in zip(found, weights, strict=True) if f < most * (1 - 1e-9)]
    assert not below or max(below) == pytest.approx(min(below))


@given(st.floats(0, 1e4), st.integers(1, 10521))
def test_shares_stand_for_no_more_entries(entries: float, tokens: int) -> None:
    share = share_within(entries, tokens)
    assert share_of(share, tokens) <= entries + 1e-6
    assert share == 1 or share_of(share + 1 / 80, tokens) > entries - 1
